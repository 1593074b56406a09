"""Which of what was said is learnt from, and which is held out to measure on.

Prompts are held out by their digest. Where a share of the annotators is held out, too, whatever
they said is: it shows how a model pleases people that it learnt nothing from. A prompt that one of
them judged is then learnt from through nobody. So no prompt is ever in both parts, and what is
never learnt from later follows from the prompts of the held-out part, as without annotators.

Both sides depend on the prompt or the person alone, so they stay as data grows. But a prompt can be
learnt from in one snapshot and held out in the next, when a held-out annotator judged it meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from accounts.errors import ProductError
from training.ledger import Exclusion
from training.rows import Said
from training.sources import Group


class Side(NamedTuple):
    """Some of what was said of a prompt, where it goes, and why it may not go there."""

    part: str
    said: list[Said]
    leak: Exclusion | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a snapshot's prompts and annotators part; prompts are named by digest."""

    fraction: float
    # The key of each prompt that has near-duplicates.
    alike: Mapping[str, str] = field(default_factory=dict)
    # Why a prompt may not be learnt from: what earlier snapshots held out or evaluations ask.
    leaked: Mapping[str, Exclusion] = field(default_factory=dict)
    # Who is held out, and the near-duplicates of what they judged.
    annotators: AbstractSet[str] = frozenset()
    judged: AbstractSet[str] = frozenset()

    def sides(self, group: Group) -> Iterator[Side]:
        """Yield where everything said of a prompt goes, each thing once."""
        key = self.alike.get(group.prompt_id, group.prompt_id)
        if is_heldout(key, self.fraction):
            yield Side("heldout", group.said)
            return
        leak = self.leaked.get(group.prompt_id) or self.leaked.get(key)
        if not self.annotators:
            yield Side("train", group.said, leak)
            return
        theirs = [one for one in group.said if one.annotator in self.annotators]
        others = [one for one in group.said if one.annotator not in self.annotators]
        if theirs:
            yield Side("heldout", theirs)
        if others:
            judged = key in self.judged or any(one.exclusion is None for one in theirs)
            yield Side("train", others, leak or (Exclusion.HELDOUT_LEAK if judged else None))


def is_heldout(prompt_id: str, fraction: float) -> bool:
    """Say on which side of the split a prompt lies.

    It depends on the prompt alone, so the side never changes as the data grows, and nothing that
    was held out once is trained on later (with the same fraction).
    """
    return _point(f"heldout:{prompt_id}") < fraction


def heldout_annotators(annotators: Collection[str], share: float) -> frozenset[str]:
    """Return who of these is held out, by a digest of their id alone.

    ProductError where that is nobody, or everybody: few people do not part by any share.
    """
    if len(annotators) == 1:
        raise ProductError(
            "One person gave all these judgements, so nobody can be held out beside them. Leave "
            "the share of held-out annotators at 0."
        )
    found = frozenset(one for one in annotators if _point(f"heldout annotator:{one}") < share)
    if not found or len(found) == len(annotators):
        number, how = len(annotators), "raise" if not found else "lower"
        raise ProductError(
            f"{'None' if not found else 'All'} of the {number} annotators would be held out by a "
            f"share of {share:.0%}. Please {how} it, or leave it at 0."
        )
    return found


def with_alike(prompts: AbstractSet[str], alike: Mapping[str, str]) -> set[str]:
    """Return these prompts with the keys of their near-duplicates."""
    return set(prompts) | {alike[one] for one in prompts if one in alike}


def _point(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16.0**12
