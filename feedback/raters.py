"""How much each annotator's levels on scales are worth. Pure functions, no Django.

Hovy et al. 2013 (MACE): with probability c_a annotator a knows, and else follows a habit of their
own, whatever the response (always a 4; anything). Levels have an order, so who knows gives a level
near the true one, the chance falling by one factor a step, which is the same for everybody. EM
finds competences, habits, that factor and the true levels together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feedback.scales import Known, Rated

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# Pseudo-levels of prior belief that an annotator knows three times in four, as in feedback.trust.
PRIOR_KNOWN, PRIOR_HABIT = 3.0, 1.0
# What the chance of a level falls by with each step from the true one: the first guess, and all.
FIRST_FALL = 0.35
FALLS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
ITERATIONS = 100
TOLERANCE = 1e-4


@dataclass(slots=True)
class _Cells:
    """One scale's levels: who gave what, from 0; ``allowed`` is units x levels."""

    who: Array
    what: Array
    said: Array
    allowed: Array
    prior: Array
    near: Array
    habits: Array


def competence(
    rated: Sequence[Rated],
    levels: Mapping[str, int],
    known: Mapping[tuple[Hashable, str], Known] | None = None,
) -> dict[str, float]:
    """Return how often each annotator rates by the response, and not by habit or chance.

    ``levels`` says how many levels each scale has. Where a level is ``known``, the true one is
    within its distance. Who rated nothing that others rated or a lead knows is left out.
    """
    import numpy as np

    known = known or {}
    cells, people = _cells(rated, levels, known)
    if not people:
        return {}
    knows = np.full(len(people), PRIOR_KNOWN / (PRIOR_KNOWN + PRIOR_HABIT))
    for _ in range(ITERATIONS):
        met = np.zeros(len(people))
        count = np.zeros(len(people))
        for one in cells:
            met += np.bincount(one.who, weights=_refine(one, knows), minlength=len(people))
            count += np.bincount(one.who, minlength=len(people))
        new = (met + PRIOR_KNOWN) / (count + PRIOR_KNOWN + PRIOR_HABIT)
        moved = float(np.abs(new - knows).max())
        knows = new
        if moved < TOLERANCE:
            break
    return {name: float(knows[index]) for name, index in people.items()}


def _cells(
    rated: Sequence[Rated],
    levels: Mapping[str, int],
    known: Mapping[tuple[Hashable, str], Known],
) -> tuple[list[_Cells], dict[str, int]]:
    """Return each scale's cells that can be compared, and the annotators' numbers."""
    import numpy as np

    given: dict[str, list[tuple[str, Hashable, int]]] = defaultdict(list)
    raters: Counter[tuple[Hashable, str]] = Counter()
    for one in rated:
        for response, of in one.levels.items():
            for key, level in of.items():
                if 1 <= level <= levels.get(key, 0):
                    given[key].append((one.annotator, response, level))
                    raters[response, key] += 1
    people: dict[str, int] = {}
    found = []
    for key, all_cells in given.items():
        some = [one for one in all_cells if raters[one[1], key] > 1 or (one[1], key) in known]
        if not some:
            continue
        units: dict[Hashable, int] = {}
        what = np.array([units.setdefault(response, len(units)) for _, response, _ in some])
        allowed = np.ones((len(units), levels[key]))
        for response, index in units.items():
            if right := known.get((response, key)):
                allowed[index] = np.abs(np.arange(1, levels[key] + 1) - right.level) <= right.within
        found.append(
            _Cells(
                who=np.array([people.setdefault(name, len(people)) for name, _, _ in some]),
                what=what,
                said=np.array([level - 1 for _, _, level in some]),
                allowed=allowed,
                prior=np.full(levels[key], 1 / levels[key]),
                near=_near(FIRST_FALL, levels[key]),
                habits=np.empty(0),
            )
        )
    for scale in found:
        scale.habits = np.full((len(people), len(scale.prior)), 1 / len(scale.prior))
    return found, people


def _near(fall: float, levels: int) -> Array:
    """Return the chances of each level (columns) given the true one (rows)."""
    import numpy as np

    steps = np.abs(np.arange(levels)[:, None] - np.arange(levels))
    weights = fall**steps
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _refine(one: _Cells, knows: Array) -> Array:
    """Return the chance that each level was given by knowledge, and improve the scale's figures."""
    import numpy as np

    levels = len(one.prior)
    # P(level | truth) = c near(level | truth) + (1 - c) habit(level): cells x true levels.
    by_knowledge = knows[one.who][:, None] * one.near[:, one.said].T
    by_habit = ((1 - knows) * one.habits.T).T[one.who, one.said]
    likelihood = by_knowledge + by_habit[:, None]
    odds = np.log(one.prior) + np.where(one.allowed > 0, 0.0, -np.inf)
    np.add.at(odds, one.what, np.log(likelihood))
    truth = np.exp(odds - odds.max(axis=1, keepdims=True))
    truth /= truth.sum(axis=1, keepdims=True)
    knew = truth[one.what] * by_knowledge / likelihood
    by_level = np.zeros((levels, levels))
    np.add.at(by_level.T, one.said, knew)
    fits = {fall: float((by_level * np.log(_near(fall, levels))).sum()) for fall in FALLS}
    one.near = _near(max(fits, key=lambda fall: fits[fall]), levels)
    one.prior = (truth.sum(axis=0) + 1) / (len(truth) + levels)
    known = knew.sum(axis=1)
    habits = np.full(one.habits.shape, 1 / levels)
    np.add.at(habits, (one.who, one.said), 1 - known)
    one.habits = habits / habits.sum(axis=1, keepdims=True)
    return np.asarray(known)
