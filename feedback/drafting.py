"""How drafts are asked for and read: the examples shown, the exact shape, and what is too near.

Pure functions. New prompts are asked for as in Self-Instruct (Wang et al. 2022): a few prompts of
the project stand as the writer's own earlier turns, and it is asked for one more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, str]]

# Self-Instruct keeps what has less than this ROUGE-L in common with all that is there. Answers to
# one prompt share much by nature.
NEAR_PROMPT, NEAR_RESPONSE = 0.7, 0.9
_WORD = re.compile(r"\w+")
_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)
_TASK = (
    "You write prompts: what a person asks an assistant. A prompt is a JSON list of messages such "
    'as [{"role": "user", "content": "…"}]; the last message is the user\'s. Each prompt is about '
    "something else than those before. Write the JSON and nothing else."
)
_FIRST, _NEXT = "Write a prompt.", "Write another prompt, on another subject."


class Unfit(Exception):
    """What was written is not of the shape; the message says why."""


def ask_for_prompt(examples: Sequence[Messages], guidance: str = "") -> Messages:
    """Return the conversation that asks for one prompt more."""
    asked = [{"role": "system", "content": f"{_TASK}\n\n{guidance}".strip()}]
    for number, example in enumerate(examples):
        asked.append({"role": "user", "content": _NEXT if number else _FIRST})
        shown = [{"role": turn["role"], "content": turn["content"]} for turn in example]
        asked.append({"role": "assistant", "content": json.dumps(shown, ensure_ascii=False)})
    asked.append({"role": "user", "content": _NEXT if examples else _FIRST})
    return asked


def ask_for_response(prompt: Messages, guidance: str = "") -> Messages:
    """Return the prompt itself; guidance goes into its system turn, which only the writer sees."""
    if not guidance:
        return prompt
    if prompt[0]["role"] != "system":
        return [{"role": "system", "content": guidance}, *prompt]
    first = {"role": "system", "content": f"{prompt[0]['content']}\n\n{guidance}"}
    return [first, *prompt[1:]]


def read_prompt(text: str) -> Messages:
    """Return the messages that a text writes as JSON, or raise Unfit.

    The whole text must be the list, or one fenced block with it; a message has a role and a
    content and nothing else. What else a prompt must be, ``services.check_messages`` says.
    """
    text = text.strip()
    if not text:
        raise Unfit("The model wrote nothing.")
    fenced = _FENCED.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except ValueError as error:
        raise Unfit(f"Not the JSON of a conversation: {error}.") from None
    if not isinstance(value, list):
        raise Unfit("The JSON is not a list of messages.")
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise Unfit(f"Message {number} is not of a role and a content alone.")
    return value


def read_response(text: str) -> str:
    """Return an answer's text, or raise Unfit."""
    if not text.strip():
        raise Unfit("The model wrote nothing.")
    return text.strip()


def asked_words(messages: Messages) -> list[str]:
    """Return the words of all that the user asks, in lower case."""
    return words("\n".join(turn["content"] for turn in messages if turn["role"] == "user"))


def words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


@dataclass(frozen=True)
class Likeness:
    """What is nearest: its name, and the ROUGE-L with it between 0 and 1."""

    name: str
    share: float


def nearest(
    found: Sequence[str], known: Mapping[str, Sequence[str]], *, least: float
) -> Likeness | None:
    """Return the nearest of the known texts, as words by name, from ``least`` on.

    The share is ROUGE-L's F1: twice the longest common subsequence over both lengths.
    """
    from rapidfuzz import process
    from rapidfuzz.distance import Indel

    if not found:
        return None  # nothing but signs
    best: Any = process.extractOne(
        found, known, scorer=Indel.normalized_similarity, score_cutoff=least
    )
    return None if best is None else Likeness(best[2], best[1])
