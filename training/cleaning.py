"""Leave out of a snapshot what is in other languages, and count what is in which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.conf.locale import LANG_INFO

from training import languages
from training.ledger import Exclusion
from training.options import Options
from training.rows import Composed
from training.sources import Group, asked


class Cleaning:
    """Looks at the texts of a snapshot's rows, a prompt at a time, as its options ask for it."""

    def __init__(self, options: Options) -> None:
        self.languages = frozenset(options.languages)
        # Texts by language: each prompt once, each answer once for its prompt.
        self.prompts: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()

    def withhold(self, group: Group, composed: Composed) -> None:
        """Give up the rows of which a text is in another language.

        A text whose language cannot be told stands in nobody's way.
        """
        if not self.languages or not composed.rows:
            return
        detect = languages.detector()
        taken = self.languages | {languages.UNDETERMINED}
        prompt = detect(asked(group.messages))
        named = {answer for row in composed.rows for answer in row[1:3] if answer}
        spoken = {answer: detect(group.texts[answer]) for answer in named}
        self.prompts[prompt] += 1
        self.answers.update(spoken.values())
        if prompt not in taken:
            composed.withhold(Exclusion.LANGUAGE)
        elif not taken.issuperset(spoken.values()):
            composed.withhold(
                Exclusion.LANGUAGE,
                lambda row: all(spoken[one] in taken for one in row[1:3] if one),
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the manifest's part; nothing where nothing was asked for."""
        if not self.languages:
            return {}
        return {
            "languages": {
                "detector": languages.detector().name,
                "taken": sorted(self.languages),
                "prompts": dict(sorted(self.prompts.items())),
                "answers": dict(sorted(self.answers.items())),
            }
        }


@dataclass(frozen=True, kw_only=True)
class LanguageLine:
    """How much of what was read is in one language."""

    name: str
    prompts: int
    answers: int
    share: float  # of all answers
    taken: bool


def language_lines(manifest: Mapping[str, Any]) -> list[LanguageLine]:
    """Return a manifest's languages, the most frequent first; none where none were told."""
    found = manifest.get("languages")
    if not found:
        return []
    prompts, answers = Counter(found["prompts"]), Counter(found["answers"])
    total = max(1, answers.total())
    return [
        LanguageLine(
            name=_name(code),
            prompts=prompts[code],
            answers=answers[code],
            share=answers[code] / total,
            taken=code == languages.UNDETERMINED or code in found["taken"],
        )
        for code in sorted(prompts | answers, key=lambda one: (-(prompts + answers)[one], one))
    ]


def _name(code: str) -> str:
    if code == languages.UNDETERMINED:
        return "undetermined"
    known = LANG_INFO.get(code, {}).get("name")
    return f"{known} ({code})" if known else code
