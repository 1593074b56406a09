"""Snapshot rows to rank trees: one prompt, its distinct responses, and the pairs between them.

No torch in here: token ids are plain integers.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.engine.errors import RunError

Message = dict[str, str]
DIVERGENCE_PROMPTS = 16  # two passes over all of a large held-out part would double its cost
# What templates write for today: a run that is resumed tomorrow reads the same tokens, and finds
# its stored references.
DAY = datetime.date(2026, 1, 1)
CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


@dataclass(frozen=True)
class Pair:
    """One judgement between two responses of a tree, named by their places in it."""

    chosen: int
    rejected: int
    weight: float = 1.0
    margin: float = 1.0
    tie: bool = False


@dataclass(frozen=True)
class Votes:
    """The weights with which one response was called good and bad."""

    good: float = 0.0
    bad: float = 0.0


@dataclass(frozen=True)
class Tree:
    """A prompt's tokens, the tokens of each distinct response, and what was judged of them."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    pairs: tuple[Pair, ...]
    votes: tuple[Votes, ...] = ()

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def weight(self) -> float:
        return sum(pair.weight for pair in self.pairs)

    @property
    def ordered(self) -> bool:
        """Say whether anybody put two of its responses in an order; ties do not."""
        return any(pair.weight > 0 and not pair.tie for pair in self.pairs)


@dataclass
class RowCounts:
    """What became of the rows; dropped = in - used."""

    rows: int = 0
    used: int = 0
    truncated: int = 0

    def as_dict(self) -> dict[str, int]:
        return {
            "in": self.rows,
            "used": self.used,
            "truncated": self.truncated,
            "dropped": self.rows - self.used,
        }


def read_trees(
    path: Path,
    tokenizer: Any,
    *,
    max_length: int,
    max_prompt_length: int,
    keep_ties: bool = False,
    single: bool = False,
) -> tuple[list[Tree], RowCounts]:
    """Read a snapshot file into trees, in the order in which their prompts first appear.

    Equal judgements (same pair, margin) become one pair with the sum of their weights, so the
    weighted mean over pairs is the mean over rows. `single` also takes rows with a chosen or a
    rejected response alone. Raises RunError for rows that make no sense.
    """
    counts = RowCounts()
    encode = Encoder(tokenizer, max_length=max_length, max_prompt_length=max_prompt_length)
    groups: dict[str, _Group] = {}
    for number, row in enumerate(_rows(path), 1):
        counts.rows += 1
        where = f"Row {number} of {path.name}"
        prompt = _messages(row.get("prompt"), "prompt", where)
        tie = bool(row.get("tie"))
        if tie and not keep_ties:
            continue
        key = f"{row.get('prompt_id')}\0{_canonical(prompt)}"
        if key not in groups:
            groups[key] = _Group(*encode.prompt(prompt))
        group = groups[key]
        places: list[int | None] = []
        for column in ("chosen", "rejected"):
            absent = row.get(column) is None
            if absent and not single:
                raise RunError(
                    f"{where} has no {column} response: this method compares two. Train kto or sft "
                    "on responses that were judged alone."
                )
            given = None if absent else _messages(row.get(column), column, where)
            places.append(group.place(encode, prompt, given) if given else None)
        chosen, rejected = places
        if chosen == rejected or (not single and None in places):
            continue
        group.enter(row, chosen, rejected, tie, where)
        counts.used += 1
        counts.truncated += group.cut or not group.cut_places.isdisjoint((chosen, rejected))
    return [tree for group in groups.values() if (tree := group.tree())], counts


class _Group:
    """A tree in the making."""

    def __init__(self, prompt: tuple[int, ...], cut: bool) -> None:
        self.prompt = prompt
        self.cut = cut
        self.places: dict[tuple[int, ...], int] = {}
        self.seen: dict[str, int | None] = {}
        self.cut_places: set[int] = set()
        self.weights: dict[Pair, float] = {}
        self.votes: dict[int, Votes] = {}

    def place(self, encode: Encoder, prompt: list[Message], response: list[Message]) -> int | None:
        """Return the place of a response; None when nothing of it is left to learn from."""
        key = _canonical(response)
        if key not in self.seen:
            tokens, cut = encode.response(prompt, response, len(self.prompt))
            place = self.places.setdefault(tokens, len(self.places)) if tokens else None
            if cut and place is not None:
                self.cut_places.add(place)
            self.seen[key] = place
        return self.seen[key]

    def enter(
        self,
        row: dict[str, Any],
        chosen: int | None,
        rejected: int | None,
        tie: bool,
        where: str,
    ) -> None:
        """Take a judgement in; one of the two responses may be missing."""
        weight = _number(row.get("weight"), "weight", where)
        margin = _number(row.get("margin"), "margin", where)
        share = _number(row.get("probability"), "probability", where)
        if weight <= 0 or not 0 <= share <= 1:
            raise RunError(f"{where} needs a weight above 0 and a probability from 0 to 1.")
        # A soft label is both judgements at once, each with its share.
        for first, second, part in ((chosen, rejected, share), (rejected, chosen, 1 - share)):
            if part <= 0:
                continue
            if first is not None:
                self._vote(first, good=weight * part)
            if second is not None:
                self._vote(second, bad=weight * part)
            if first is not None and second is not None:
                pair = Pair(first, second, 0.0, margin, tie)
                self.weights[pair] = self.weights.get(pair, 0.0) + weight * part

    def _vote(self, place: int, *, good: float = 0.0, bad: float = 0.0) -> None:
        before = self.votes.get(place, Votes())
        self.votes[place] = Votes(before.good + good, before.bad + bad)

    def tree(self) -> Tree | None:
        """Return the finished tree; None when nothing was judged."""
        if not self.votes:
            return None
        named = sorted(self.votes)
        tokens = list(self.places)
        moved = {place: number for number, place in enumerate(named)}
        return Tree(
            self.prompt,
            tuple(tokens[place] for place in named),
            tuple(
                Pair(moved[pair.chosen], moved[pair.rejected], weight, pair.margin, pair.tie)
                for pair, weight in self.weights.items()
            ),
            tuple(self.votes[place] for place in named),
        )


class Encoder:
    """Messages to tokens by the tokenizer's chat template.

    A response's tokens stand behind exactly the prompt tokens that the model is given when it
    answers. They end with what ends a turn, as generation does: what the template writes after that
    is left out, and where it writes nothing of the kind the end-of-text token is added.
    """

    def __init__(self, tokenizer: Any, *, max_length: int, max_prompt_length: int) -> None:
        if not tokenizer.chat_template:
            raise RunError(
                "The base's tokenizer has no chat template: use an instruction-tuned base, "
                "or add a chat_template.jinja to its folder."
            )
        self.tokenizer = tokenizer
        self.template = _without_clock(tokenizer.get_chat_template())
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        added = tokenizer.added_tokens_decoder.values()
        ends = {str(one) for one in added if one.special} | {tokenizer.eos_token or ""}
        self.ends = tuple(ends - {""})
        # SentencePiece writes a space before whatever it is given, so it must see an answer in its
        # place; elsewhere the answer alone is quicker.
        self.in_place = self._tokens("a\nb") != self._tokens("a\n") + self._tokens("b")

    def prompt(self, messages: list[Message]) -> tuple[tuple[int, ...], bool]:
        """Return the tokens up to where the answer begins, and whether the beginning was cut."""
        tokens = self._tokens(self._text(messages, answering=True))
        if not tokens:
            raise RunError("The base's chat template writes nothing in front of an answer.")
        if len(tokens) <= self.max_prompt_length:
            return tokens, False
        opening = self.opening(tokens)
        kept = self.max_prompt_length - opening
        return tokens[:opening] + tokens[-kept:], True

    def opening(self, tokens: Sequence[int]) -> int:
        """Return how many tokens stay when the beginning is cut: the mark of the text's begin.

        Models rest their attention on it, and are lost without.
        """
        first = self.tokenizer.bos_token_id
        return int(first is not None and tokens[:1] == (first,))

    def response(
        self, prompt: list[Message], response: list[Message], prompt_length: int
    ) -> tuple[tuple[int, ...], bool]:
        """Return the tokens of the answer, and whether its end was cut."""
        before = self._text(prompt, answering=True)
        whole = self._text([*prompt, *response], answering=False)
        if not whole.startswith(before):
            raise RunError(
                "The chat template writes a prompt differently once it is answered, so the answer "
                "cannot be told from the prompt: use a base with a plainer template."
            )
        tokens = self._ended(before, whole[len(before) :])
        room = self.max_length - prompt_length
        return tokens[:room], len(tokens) > room

    def _ended(self, before: str, answer: str) -> tuple[int, ...]:
        """Return the tokens of an answer behind a prompt's text, up to the end of its turn."""
        bare, end = answer.rstrip(), self.tokenizer.eos_token_id
        if bare.endswith(self.ends):
            tokens = self._behind(before, bare)
        else:
            tokens = self._behind(before, answer)
        if end in tokens:
            return tokens[: len(tokens) - tokens[::-1].index(end)]
        if end is None or bare.endswith(self.ends):
            return tokens
        return (*self._behind(before, bare), end)

    def _behind(self, before: str, answer: str) -> tuple[int, ...]:
        if self.in_place:
            asked, both = self._tokens(before), self._tokens(before + answer)
            # Where a token reaches over the border generation cannot follow: it begins anew there.
            if both[: len(asked)] == asked:
                return both[len(asked) :]
        return self._tokens(answer)

    def _text(self, messages: list[Message], *, answering: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=answering,
                )
            )
        except Exception as error:  # a template may raise anything
            raise RunError(f"The base's chat template refuses a conversation: {error}.") from error

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def divergence_trees(heldout: Sequence[Tree]) -> list[Tree]:
    """Return one response of each of the first trees, for the divergence from the base.

    In turn the first, the second and so on, so that good and bad ones are read.
    """
    return [
        Tree(tree.prompt, (tree.responses[place % len(tree.responses)],), ())
        for place, tree in enumerate(heldout[:DIVERGENCE_PROMPTS])
    ]


def _without_clock(template: str) -> str:
    """Return a chat template that writes DAY where it would write today."""
    return CLOCK.sub(lambda found: repr(DAY.strftime(found[2])), template)


def split_tree(tree: Tree, budget: int) -> Iterator[Tree]:
    """Cut a tree that is over the token budget into trees that share its prompt.

    Pairs keep their order; a pair that is over the budget alone stays whole. Votes are left behind:
    for what learns from them there is ``split_votes``.
    """
    if tree.tokens <= budget or not tree.pairs:
        yield tree
        return
    part: list[Pair] = []
    for pair in tree.pairs:
        if part and _part(tree, [*part, pair]).tokens > budget:
            yield _part(tree, part)
            part = []
        part.append(pair)
    yield _part(tree, part)


def split_votes(tree: Tree, budget: int, taught: Sequence[bool]) -> Iterator[Tree]:
    """Cut a tree that is over the token budget by its responses, each with its own votes.

    Only responses that are taught are kept, so a part teaches what it taught in the whole tree. One
    that is over the budget alone stays whole.
    """
    if tree.tokens <= budget:
        yield tree
        return
    places: list[int] = []
    size = len(tree.prompt)
    for place in (place for place, one in enumerate(taught) if one):
        length = len(tree.responses[place])
        if places and size + length > budget:
            yield _of_responses(tree, places)
            places, size = [], len(tree.prompt)
        places.append(place)
        size += length
    if places:
        yield _of_responses(tree, places)


def _of_responses(tree: Tree, places: Sequence[int]) -> Tree:
    return Tree(
        tree.prompt,
        tuple(tree.responses[place] for place in places),
        (),
        tuple(tree.votes[place] for place in places),
    )


def _part(tree: Tree, pairs: list[Pair]) -> Tree:
    named = sorted({place for pair in pairs for place in (pair.chosen, pair.rejected)})
    moved = {place: number for number, place in enumerate(named)}
    return Tree(
        tree.prompt,
        tuple(tree.responses[place] for place in named),
        tuple(
            dataclasses.replace(pair, chosen=moved[pair.chosen], rejected=moved[pair.rejected])
            for pair in pairs
        ),
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            missing = {"prompt", "chosen"} - set(file.schema_arrow.names)
            if missing:
                raise RunError(
                    f"{path.name} lacks the column {', '.join(sorted(missing))}: "
                    "take the snapshot again."
                )
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except FileNotFoundError as error:
        raise RunError(f"The snapshot has no {path.name}: take it again.") from error
    except pa.ArrowInvalid as error:
        raise RunError(f"{path} is not a Parquet file, or is damaged: take it again.") from error


def _messages(value: Any, column: str, where: str) -> list[Message]:
    good = isinstance(value, list) and value
    if not good or not all(
        isinstance(one, dict) and one.get("role") and isinstance(one.get("content"), str)
        for one in value
    ):
        raise RunError(f"{where}: {column} must be a list of messages with role and content.")
    return [{"role": one["role"], "content": one["content"]} for one in value]


def _number(value: Any, column: str, where: str) -> float:
    """Return a column's number, 1 where it is absent."""
    number = 1.0 if value is None else float(value)
    if not math.isfinite(number):
        raise RunError(f"{where}: {column} is not a finite number.")
    return number


def _canonical(messages: Iterable[Message]) -> str:
    return json.dumps(list(messages), sort_keys=True)
