"""How long prompts and answers are, and whether the chosen ones are longer: counted in streaming.

Lengths are characters (Unicode code points). They go into bins at fixed places, so memory is flat
and what comes out does not depend on the order: exact below 64 characters, then to 3 % of a length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feedback.agreement import wilson

EXACT, PER_OCTAVE, OCTAVES = 64, 32, 20
EDGES = np.array(
    [
        *range(EXACT),
        *(
            2**octave * (EXACT + step * EXACT // PER_OCTAVE)
            for octave in range(OCTAVES)
            for step in range(PER_OCTAVE)
        ),
    ]
)
# A picture has four bins to a doubling, from 8 characters on.
DRAWN = np.array(
    [
        *range(8),
        *(2**octave * step for octave in (1, 2, 3) for step in (4, 5, 6, 7)),
        *range(EXACT, len(EDGES), PER_OCTAVE // 4),
    ]
)
# So many different answers are looked at for repetition: a share is then known to about 1 %.
ANSWERS_KEPT = 4096
# From this share of longer chosen answers on, length may be what a model learns.
MUCH_LONGER = 0.6


class Histogram:
    """Counts of lengths by bin, with the exact least, greatest and sum."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(EDGES), np.int64)
        self.count = self.total = self.most = 0
        self.least: int | None = None

    def add(self, lengths: NDArray[np.int64]) -> None:
        """Count some lengths."""
        if lengths.size == 0:
            return
        places = np.searchsorted(EDGES, lengths, side="right") - 1
        self.counts += np.bincount(places, minlength=len(EDGES))
        self.count += int(lengths.size)
        self.total += int(lengths.sum())
        self.most = max(self.most, int(lengths.max()))
        least = int(lengths.min())
        self.least = least if self.least is None else min(self.least, least)

    def at(self, percent: int) -> int:
        """Return the length that so many percent do not exceed (nearest rank): its bin's start."""
        rank = max(1, -(-percent * self.count // 100))
        place = int(np.searchsorted(np.cumsum(self.counts), rank))
        return min(self.most, max(self.least or 0, int(EDGES[place])))

    def as_dict(self) -> dict[str, Any] | None:
        """Return JSON values; None where nothing was counted."""
        if self.count == 0:
            return None
        return {
            "count": self.count,
            "min": self.least,
            "median": self.at(50),
            "p95": self.at(95),
            "max": self.most,
            "mean": round(self.total / self.count, 2),
        }


class Lengths:
    """The lengths in one part of a snapshot: prompts count once, answers in each of their rows."""

    def __init__(self) -> None:
        self.prompt, self.chosen, self.rejected = Histogram(), Histogram(), Histogram()
        self.longer = self.shorter = self.pairs = self.lead = 0

    def add_prompts(self, lengths: Sequence[int]) -> None:
        """Count prompts, each the sum of its messages."""
        self.prompt.add(np.array(lengths, np.int64))

    def add_answers(self, chosen: pa.Array, rejected: pa.Array) -> None:
        """Count the answers of some rows by their lengths; null where a row has none."""
        self.chosen.add(_numbers(chosen))
        self.rejected.add(_numbers(rejected))
        leads = _numbers(pc.subtract(chosen, rejected))
        self.pairs += int(leads.size)
        self.longer += int((leads > 0).sum())
        self.shorter += int((leads < 0).sum())
        self.lead += int(leads.sum())

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values: the lengths, their picture, and the bias of chosen over rejected."""
        return {
            "prompt": self.prompt.as_dict(),
            "chosen": self.chosen.as_dict(),
            "rejected": self.rejected.as_dict(),
            "bias": self._bias(),
            "histogram": self._histogram(),
        }

    def _bias(self) -> dict[str, Any] | None:
        """Return how often the chosen answer is the longer one; None where no lengths differ.

        ``share`` is of the pairs whose lengths differ. The rows of a prompt share answers, so its
        95 % interval (Wilson 1927) counts prompts where those are fewer.
        """
        differ = self.longer + self.shorter
        if differ == 0:
            return None
        share = self.longer / differ
        low, high = wilson(share, min(differ, self.prompt.count))
        return {
            "pairs": self.pairs,
            "longer": self.longer,
            "shorter": self.shorter,
            "share": round(share, 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "mean_difference": round(self.lead / self.pairs, 2),
        }

    def _histogram(self) -> dict[str, list[int]]:
        """Return where bins begin and how many answers lie in each, without the empty ends."""
        chosen = np.add.reduceat(self.chosen.counts, DRAWN)
        rejected = np.add.reduceat(self.rejected.counts, DRAWN)
        filled = np.flatnonzero(chosen + rejected)
        kept = slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0)
        return {
            "from": EDGES[DRAWN][kept].tolist(),
            "chosen": chosen[kept].tolist(),
            "rejected": rejected[kept].tolist(),
        }


class Repeats:
    """How many answers stand under several prompts, from those with the smallest digests.

    A digest is as good as a random number, so these are a fair sample, the same in every order, and
    all of them where there are no more. Who is among them in the end was so all along (Bar-Yossef
    et al. 2002, a bottom-k sketch), so that their uses are counted in full.
    """

    def __init__(self, kept: int = ANSWERS_KEPT) -> None:
        self.kept = kept
        self.uses: dict[str, int] = {}
        self.bound = "~"  # after every digest
        self.sampled = False

    def add(self, answers: Iterable[str]) -> None:
        """Count the different answers under one prompt, by digest."""
        for answer in answers:
            if answer <= self.bound:
                self.uses[answer] = self.uses.get(answer, 0) + 1
        if len(self.uses) >= 2 * self.kept:
            self._cut()

    def _cut(self) -> None:
        smallest = sorted(self.uses)[: self.kept]
        self.uses = {one: self.uses[one] for one in smallest}
        self.bound, self.sampled = smallest[-1], True

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values; ``share`` is of the answers, a text counted once for each prompt."""
        if len(self.uses) > self.kept:
            self._cut()
        answers = sum(self.uses.values())
        repeated = sum(uses for uses in self.uses.values() if uses > 1)
        return {
            "answers": answers,
            "repeated": repeated,
            "share": round(repeated / answers, 4) if answers else None,
            "sampled": self.sampled,
        }


def warning(bias: Mapping[str, Any] | None) -> str:
    """Return a sentence for whoever trains on answers that were chosen longer; else nothing."""
    if not bias or bias["share"] <= MUCH_LONGER or bias["low"] <= 0.5:
        return ""
    return (
        "The chosen answer is mostly the longer one, so a model may learn to write more instead of "
        "better. Compare lengths after training, or use a method that divides by length, such as "
        "SimPO."
    )


def _numbers(lengths: pa.Array) -> NDArray[np.int64]:
    found: NDArray[np.int64] = lengths.drop_null().to_numpy().astype(np.int64)
    return found
