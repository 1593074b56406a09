"""Mask personal data in what a snapshot exports, or leave out or count what holds it.

Answers are masked before they are compared: two that differ in an address alone are one answer from
then on, and are never a pair. The database keeps every text as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from feedback.models import text_digest
from training import pii
from training.ledger import Exclusion
from training.options import Pii
from training.rows import Composed, Said
from training.settled import Decided
from training.sources import Group

Kinds = tuple[str, ...]


class Masking:
    """Looks for personal data a prompt at a time, and does with it what was chosen."""

    def __init__(self, chosen: Pii, find: pii.Find | None = None) -> None:
        self.chosen = chosen
        self.find = find
        if find is None and chosen != Pii.OFF:
            self.find = pii.finder()
        # How often each kind stands in exported texts, or would without the exclusion.
        self.found: Counter[str] = Counter()
        # Texts with any, each prompt once, each answer once for its prompt.
        self.prompts = self.answers = 0
        self._prompt: Kinds = ()
        self._kinds: dict[str, Kinds] = {}  # of answers under this prompt

    def read(self, group: Group) -> Group:
        """Look through what was said of a prompt; return it masked where that was chosen."""
        if self.find is None or all(one.exclusion is not None for one in group.said):
            return group
        turns = [self.find(message["content"]) for message in group.messages]
        # In order, so that of two answers that become one the same is looked at everywhere.
        answers = {one: self.find(group.texts[one]) for one in sorted(group.texts)}
        self._prompt = tuple(kind for turn in turns for kind in turn.kinds)
        if self.chosen != Pii.MASK:
            self._kinds = {one: found.kinds for one, found in answers.items()}
            return group
        names = {
            one: text_digest(found.text) if found.kinds else one for one, found in answers.items()
        }
        self._kinds = {names[one]: found.kinds for one, found in answers.items()}
        if not self._prompt and not any(self._kinds.values()):
            return group
        messages = [
            {**message, "content": turn.text}
            for message, turn in zip(group.messages, turns, strict=True)
        ]
        return replace(
            group,
            messages=messages,
            written=text_digest(messages),
            said=[_said(one, names) for one in group.said],
            texts={names[one]: found.text for one, found in answers.items()},
            decided=[_decided(one, names) for one in group.decided],
        )

    def withhold(self, composed: Composed) -> None:
        """Count what the rows of the prompt that was just read hold, and give up what must go."""
        if self.find is None or not composed.rows:
            return
        named = {answer for row in composed.rows for answer in row[1:3] if answer}
        dirty = {answer for answer in named if self._kinds[answer]}
        if not dirty and not self._prompt:
            return
        self.prompts += bool(self._prompt)
        self.answers += len(dirty)
        self.found.update(self._prompt)
        for answer in dirty:
            self.found.update(self._kinds[answer])
        if self.chosen == Pii.DROP:
            clean = not self._prompt
            composed.withhold(Exclusion.PII, lambda row: clean and dirty.isdisjoint(row[1:3]))

    def as_dict(self) -> dict[str, Any]:
        """Return the manifest's part; nothing where nothing was looked for."""
        if self.find is None:
            return {}
        return {
            "pii": {
                "chosen": str(self.chosen),
                "found": dict(sorted(self.found.items())),
                "prompts": self.prompts,
                "answers": self.answers,
                "recognisers": dict(self.find.versions),
            }
        }


def _said(one: Said, names: Mapping[str, str]) -> Said:
    """Return a judgement about the masked answers."""
    return replace(
        one,
        ranking=None if one.ranking is None else _ranking(one.ranking, names),
        answer=names.get(one.answer, ""),
        correction=names.get(one.correction, ""),
        ratings=None if one.ratings is None else _ratings(one.ratings, names),
    )


def _decided(one: Decided, names: Mapping[str, str]) -> Decided:
    return replace(
        one,
        ranking=_ranking(one.ranking, names),
        answer=names.get(one.answer, one.answer),
        ratings=_ratings(one.ratings, names),
    )


def _ranking(groups: Sequence[Sequence[str]], names: Mapping[str, str]) -> list[list[str]]:
    return [[names[one] for one in group] for group in groups]


def _ratings(
    ratings: Mapping[str, Mapping[str, float]], names: Mapping[str, str]
) -> dict[str, Mapping[str, float]]:
    """Return scores by masked answer; of an answer that was scored twice nothing is known."""
    times = Counter(names[one] for one in ratings)
    return {names[one]: scores for one, scores in ratings.items() if times[names[one]] == 1}
