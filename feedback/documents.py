"""Documents given with a prompt: kept as they are to be shown, sent as a system turn.

Models, snapshots and digests see messages only, so that nothing behind a prompt need know of
documents; ``detach`` takes the turn off again where people read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from accounts.errors import ProductError

Document = dict[str, str]
Message = dict[str, str]

MAX_DOCUMENTS = 10
MAX_TITLE = 200
MAX_TEXT = 100_000
# Every prompt keeps its own copy, so that few documents and many prompts make much text.
MAX_COPIED = 50_000_000


def check_documents(documents: Any) -> list[Document]:
    """Return documents as {title, text} in the order given, or raise ProductError."""
    if not isinstance(documents, Sequence) or isinstance(documents, str):
        raise ProductError("Documents are a list of {title, text}.")
    if len(documents) > MAX_DOCUMENTS:
        raise ProductError(
            f"A prompt takes {MAX_DOCUMENTS} documents, and these are {len(documents)}. "
            "Leave some out."
        )
    return [_checked(number, one) for number, one in enumerate(documents, start=1)]


def _checked(number: int, document: Any) -> Document:
    title = document.get("title") if isinstance(document, dict) else None
    text = document.get("text") if isinstance(document, dict) else None
    if not isinstance(title, str) or not isinstance(text, str) or not text.strip():
        raise ProductError(f"Document {number} needs a “title” and a “text” that is not empty.")
    title = " ".join(title.split())
    if not 1 <= len(title) <= MAX_TITLE:
        raise ProductError(f"The title of document {number} needs 1 to {MAX_TITLE} characters.")
    if len(text) > MAX_TEXT:
        raise ProductError(
            f"“{title}” has {len(text):,} characters; {MAX_TEXT:,} are the most. "
            "Attach the part that matters."
        )
    if "\x00" in title + text:
        raise ProductError(f"Document {number} has a NUL character. Remove it.")
    try:
        (title + text).encode()
    except UnicodeEncodeError:
        raise ProductError(f"Document {number} has half of a character. Remove it.") from None
    return {"title": title, "text": text}


def read_documents(value: Any) -> list[Document]:
    """Return what a column of a file holds, or raise ProductError.

    Understood are a text, a list of texts or of {title, text}, and such a list as JSON text. What
    has no title is numbered.
    """
    if value is None or value == "":
        return []
    if isinstance(value, str) and value.startswith(("[{", '["')):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ProductError(f"The documents begin like JSON but are not: {error}.") from None
    documents = []
    for number, one in enumerate(value if isinstance(value, list) else [value], start=1):
        known = one if isinstance(one, dict) else {"text": one}
        documents.append({"title": f"Document {number}"} | known)
    return check_documents(documents)


def attach(messages: list[Message], documents: Sequence[Document]) -> list[Message]:
    """Return the conversation as a model reads it: documents in its system turn, at the end."""
    if not documents:
        return messages
    written = _written(documents)
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": written}, *messages]
    told = f"{messages[0]['content']}\n\n{written}"
    return [{"role": "system", "content": told}, *messages[1:]]


def detach(messages: list[Message], documents: Sequence[Document]) -> list[Message]:
    """Return the conversation that ``attach`` was given."""
    if not documents:
        return messages
    written = _written(documents)
    first, *rest = messages
    if first["content"] == written:
        return rest
    return [{"role": "system", "content": first["content"].removesuffix(f"\n\n{written}")}, *rest]


def _written(documents: Sequence[Document]) -> str:
    texts = [f"# {document['title']}\n\n{document['text']}" for document in documents]
    return "\n\n".join(["Documents:", *texts])
