"""Whom to trust how much: a competence model and a sequential test. Pure functions, no Django.

**Competence.** Dawid and Skene's model (1979) with one parameter for each annotator: of every two
responses one is truly better, and annotator a says so with probability c_a, independently given the
truth. EM finds c and the truth together. Ties say nothing about which is better and are left out.

**Trust.** Wald's sequential probability ratio test (1945) watches each annotator, one judgement at
a time. It raises the alarm when the likelihood ratio of "bad" to "acceptable" reaches 1 / alpha:
under "acceptable" the ratio is a nonnegative martingale that starts at 1, so by Ville's inequality
it gets there with probability at most alpha, however long we watch and however often we look.

**Gold.** Where the truth of a unit is known, it stands fixed: it teaches EM how good each annotator
is even where nobody else judged, and the test holds their verdicts on it against the truth itself.
Where levels of a scale are known, the test holds what people rated against those.

**Repeats.** Who guesses says the same again of half the pairs. Where nobody else judges an item,
gold alone tells too little within sixty tasks, and repeats are evidence, too. But whoever errs
steadily agrees with themselves, so the test averages two ratios, with repeats and without: the mean
of two martingales is one, and either can raise the alarm.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from feedback.agreement import Judged, Verdict, kept_order, left_lean, verdicts

if TYPE_CHECKING:
    import numpy as np

    from feedback.scales import Graded

# Pseudo-judgements of prior belief that an annotator is right three times in four.
PRIOR_RIGHT, PRIOR_WRONG = 3.0, 1.0
ITERATIONS = 100
TOLERANCE = 1e-6

# What counts as acceptable and what as bad: the two hypotheses of each test. Where the typical
# annotator does worse than acceptable, the task is hard, and the typical is acceptable there.
ACCEPTABLE_COMPETENCE, BAD_COMPETENCE = 0.8, 0.5
LEAST_ACCEPTABLE = 0.6
# Gold is chosen to be clear: who is acceptable gets more than nine in ten right.
ACCEPTABLE_ON_GOLD = 0.92
# How often somebody acceptable says the same of a pair again, its sides swapped. Where people
# typically do less, the typical is acceptable, as with competence.
ACCEPTABLE_AGAIN, BAD_AGAIN = 0.75, 0.5
# Of the room between chance (1 / K) and always: people do lean a little.
ACCEPTABLE_LEAN, BAD_LEAN = 0.1, 0.6
FALSE_ALARM = 0.04
MISS = 0.05
# Above this share of rankings left as they were shown, it is not a lean but no work at all.
NEVER_REORDERS = 0.9

State = Literal["watched", "trusted", "alarm"]


@dataclass(frozen=True, kw_only=True)
class Competence:
    """What EM found: each annotator's chance to be right, and each unit's chance of being 1.

    ``left_out[k]`` is the chance that the k-th verdict is right, judged by the others alone;
    a half for a tie.
    """

    right: dict[str, float]
    truth: dict[Hashable, float]
    left_out: list[float]

    def weight(self, annotator: str) -> float:
        """Return 2 c - 1, never below 0: 1 for who is always right, 0 for a coin."""
        return max(0.0, 2 * self.right.get(annotator, 0.5) - 1)

    def label(self, unit: Hashable) -> int:
        """Return the aggregated verdict; 0 where the evidence is even."""
        chance = self.truth.get(unit, 0.5)
        return 0 if abs(chance - 0.5) < 1e-9 else 1 if chance > 0.5 else -1


def competence(
    found: Sequence[Verdict],
    *,
    prior: float | None = 0.5,
    known: Mapping[Hashable, int] | None = None,
) -> Competence:
    """Return the maximum a posteriori competences of the one-parameter Dawid–Skene model.

    ``known`` is the truth (1 or -1) of gold units. ``prior`` is the chance that a unit's truth is
    1; None estimates it (thumbs, which may be mostly up). Gold, or else majority vote, fixes the
    mirror image.
    """
    import numpy as np

    people: dict[str, int] = {}
    units: dict[Hashable, int] = {}
    who = np.array([people.setdefault(one.annotator, len(people)) for one in found], dtype=int)
    what = np.array([units.setdefault(one.unit, len(units)) for one in found], dtype=int)
    said = np.array([one.value for one in found], dtype=float)
    if not len(found):
        return Competence(right={}, truth={}, left_out=[])
    gold = np.zeros(len(units))
    for unit, value in (known or {}).items():
        if unit in units:
            gold[units[unit]] = value
    counted = np.bincount(who, weights=said != 0, minlength=len(people))
    # Starts from how each did on gold; without gold, from majority vote.
    on_gold = (gold[what] != 0) & (said != 0)
    met = np.bincount(who, weights=on_gold & (said == gold[what]), minlength=len(people))
    asked = np.bincount(who, weights=on_gold, minlength=len(people))
    right = (met + PRIOR_RIGHT) / (asked + PRIOR_RIGHT + PRIOR_WRONG)
    base = 0.0 if prior is None else math.log(prior / (1 - prior))
    for _ in range(ITERATIONS):
        # E: log odds that a unit's truth is 1 = prior + sum of verdict x log odds of its author.
        evidence = said * _logit(right)[who]
        odds = base + np.bincount(what, weights=evidence, minlength=len(units))
        truth = np.where(gold == 0, _expit(odds), gold > 0)
        # M: the share of verdicts that meet the truth, with the prior's pseudo-judgements.
        met = np.where(said > 0, truth[what], 1 - truth[what]) * (said != 0)
        hits = np.bincount(who, weights=met, minlength=len(people))
        new = (hits + PRIOR_RIGHT) / (counted + PRIOR_RIGHT + PRIOR_WRONG)
        if prior is None:
            mean = (truth.sum() + 1) / (len(units) + 2)
            base = math.log(mean / (1 - mean))
        moved = float(np.abs(new - right).max())
        right = new
        if moved < TOLERANCE:
            break
    evidence = said * _logit(right)[who]
    odds = base + np.bincount(what, weights=evidence, minlength=len(units))
    truth = np.where(gold == 0, _expit(odds), gold > 0)
    others = _expit(said * (odds[what] - evidence))
    others = np.where(gold[what] == 0, others, said == gold[what])
    return Competence(
        right={name: float(right[index]) for name, index in people.items()},
        truth={unit: float(truth[index]) for unit, index in units.items()},
        left_out=[float(chance) for chance in np.where(said == 0, 0.5, others)],
    )


def _logit(chance: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    clipped = np.clip(chance, 0.01, 0.99)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _expit(odds: Any) -> Any:
    import numpy as np

    return 1 / (1 + np.exp(-np.clip(odds, -50, 50)))


def majority(found: Iterable[Verdict]) -> dict[Hashable, int]:
    """Return the sign of each unit's summed verdicts; 0 where votes are even."""
    votes: dict[Hashable, int] = defaultdict(int)
    for one in found:
        votes[one.unit] += int(one.value)
    return {unit: (total > 0) - (total < 0) for unit, total in votes.items()}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Where a sequential test stands after ``n`` outcomes; ``at`` is when it ended."""

    state: State
    log_ratio: float
    n: int
    at: int | None


def sequential(log_ratios: Iterable[float], *, false_alarm: float, miss: float = MISS) -> Trial:
    """Return the state of Wald's test over the outcomes' log likelihood ratios, in order.

    Alarm at log(1 / false_alarm), which holds the stated rate exactly; trusted at
    log(miss / (1 - false_alarm)), Wald's lower bound. Trust is no end: the test goes on, for
    people change, and an alarm stays.
    """
    upper, lower = math.log(1 / false_alarm), math.log(miss / (1 - false_alarm))
    total, n = 0.0, 0
    state: State = "watched"
    at: int | None = None
    for step in log_ratios:
        total, n = total + step, n + 1
        if total >= upper:
            state, at = "alarm", n
            break
        if total <= lower and state == "watched":
            state, at = "trusted", n
    return Trial(state=state, log_ratio=total, n=n, at=at)


def bernoulli_step(hit: bool, *, acceptable: float, bad: float) -> float:
    """Return the log likelihood ratio of bad to acceptable for one outcome."""
    return math.log(bad / acceptable) if hit else math.log((1 - bad) / (1 - acceptable))


def competence_step(chance: float, *, acceptable: float = ACCEPTABLE_COMPETENCE) -> float:
    """Return the log likelihood ratio of bad to acceptable for a verdict right with ``chance``.

    The truth is not known but its distribution given the others is:
    P(verdict | c) = chance c + (1 - chance)(1 - c).
    """

    def likelihood(c: float) -> float:
        return chance * c + (1 - chance) * (1 - c)

    return math.log(likelihood(BAD_COMPETENCE) / likelihood(acceptable))


def graded_step(hits: Sequence[tuple[bool, float]]) -> float:
    """Return the log ratio of guessing to acceptable for an item's (met, chance) known levels.

    The levels of an item hang together. The mean of ratios that are each 1 on average is 1 on
    average however they do, so the false-alarm rate holds where their product would break it.
    """
    ratios = [
        chance / ACCEPTABLE_ON_GOLD if met else (1 - chance) / (1 - ACCEPTABLE_ON_GOLD)
        for met, chance in hits
    ]
    return math.log(statistics.fmean(ratios))


def again_step(alike: float, *, acceptable: float) -> float:
    """Return the log ratio of guessing to acceptable for an item judged again, 1 for all the same.

    A share of its pairs says the same: the mean of their ratios, as in ``graded_step``.
    """
    agreed = alike * BAD_AGAIN / acceptable
    return math.log(agreed + (1 - alike) * (1 - BAD_AGAIN) / (1 - acceptable))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the tests say of one annotator; ``flags`` are words for people."""

    annotator: str
    right: float | None
    weight: float | None
    competence: Trial
    left: Trial
    right_side: Trial
    flags: tuple[str, ...] = field(default=())

    @property
    def state(self) -> State:
        """Return the worst that any of the three tests says; trusted where competence is."""
        trials = (self.competence, self.left, self.right_side)
        if any(trial.state == "alarm" for trial in trials):
            return "alarm"
        return self.competence.state


def assess(
    judged: Sequence[Judged],
    *,
    false_alarm: float = FALSE_ALARM,
    known: Mapping[Hashable, int] | None = None,
    decided: Mapping[Hashable, int] | None = None,
    forgiven: Collection[tuple[str, int]] = (),
    graded: Sequence[Graded] = (),
    again: Mapping[tuple[str, int], float] | None = None,
) -> list[Standing]:
    """Return every annotator's standing, in order of their names.

    ``known`` is the truth of gold units, ``graded`` what people rated where levels are known, and
    ``decided`` what leads found about disputed units. What was decided, or is ``forgiven`` by
    annotator and item, teaches the model but does not count in the tests: disputes are chosen for
    being hard, and a lead has looked at what is forgiven. ``again`` is how far people agreed with
    themselves, by annotator and the item that repeats.

    An honest annotator, of acceptable competence and constancy and little lean, is flagged with
    probability at most ``false_alarm``: half of it is spent on competence, a quarter on each side.
    """
    found = verdicts(judged)
    ranked = any(one.ranking is not None for one in judged)
    known, decided = known or {}, decided or {}
    model = competence(found, prior=0.5 if ranked else None, known={**decided, **known})
    steps = _competence_steps(found, model, known, decided, forgiven)
    for each in graded:
        if (each.annotator, each.item) not in forgiven:
            steps[each.annotator, each.item] = graded_step(each.hits)
    evidence = _evidence(judged, steps, again or {}, forgiven)
    lefts, rights = _side_steps(one for one in judged if (one.annotator, one.item) not in forgiven)
    kept, leans = kept_order(judged), left_lean(judged)
    standings = []
    for name in sorted({one.annotator for one in judged}):
        trial = sequential(evidence[name], false_alarm=false_alarm / 2)
        left = sequential(lefts[name], false_alarm=false_alarm / 4)
        right = sequential(rights[name], false_alarm=false_alarm / 4)
        flags = []
        if left.state == "alarm":
            same = kept[name].value >= NEVER_REORDERS
            flags.append("never reorders" if same else "leans left")
        if right.state == "alarm":
            flags.append("leans right")
        if trial.state == "alarm":
            flags.append("no better than chance")
        compared = name in model.right and (bool(evidence[name]) or name in leans)
        standings.append(
            Standing(
                annotator=name,
                right=model.right[name] if compared else None,
                weight=model.weight(name) if compared else None,
                competence=trial,
                left=left,
                right_side=right,
                flags=tuple(flags),
            )
        )
    return standings


def _competence_steps(
    found: Sequence[Verdict],
    model: Competence,
    known: Mapping[Hashable, int],
    decided: Mapping[Hashable, int],
    forgiven: Collection[tuple[str, int]],
) -> dict[tuple[str, int], float]:
    """Return the log ratio of each annotator and item.

    An item's pairs hang together; their mean is no more than each pair's own ratio on average
    (exp is convex), so the false-alarm rate holds where their sum would break it.
    """
    typical = statistics.median(model.right.values()) if model.right else 1.0
    acceptable = min(ACCEPTABLE_COMPETENCE, max(LEAST_ACCEPTABLE, typical))
    items: dict[tuple[str, int], list[float]] = defaultdict(list)
    for one, chance in zip(found, model.left_out, strict=True):
        if one.unit in decided and one.unit not in known:
            continue
        if one.value and (one.annotator, one.item) not in forgiven:
            least = ACCEPTABLE_ON_GOLD if one.unit in known else acceptable
            step = competence_step(chance, acceptable=least)
            items[one.annotator, one.item].append(step)
    return {key: math.fsum(values) / len(values) for key, values in items.items()}


def _evidence(
    judged: Iterable[Judged],
    steps: Mapping[tuple[str, int], float],
    again: Mapping[tuple[str, int], float],
    forgiven: Collection[tuple[str, int]],
) -> dict[str, list[float]]:
    """Return by how much each annotator's log ratio moves with what they judged, in order."""
    acceptable = _acceptable_again(again)
    # Without repeats, and with them.
    logs: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    moves: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        key = (one.annotator, one.item)
        repeat = again.get(key) if key not in forgiven else None
        if key not in steps and repeat is None:
            continue
        alone, both = logs[one.annotator]
        step = steps.get(key, 0.0)
        now = alone + step, both + step
        if repeat is not None:
            now = now[0], now[1] + again_step(repeat, acceptable=acceptable[one.annotator])
        logs[one.annotator] = now
        moves[one.annotator].append(_log_mean(*now) - _log_mean(alone, both))
    return moves


def _acceptable_again(again: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """Return how far everybody must agree with themselves, judged by how far the others do."""
    own: dict[str, list[float]] = defaultdict(list)
    for (name, _), alike in again.items():
        own[name].append(alike)
    total = math.fsum(again.values())
    found = {}
    for name, mine in own.items():
        others = len(again) - len(mine) + PRIOR_RIGHT + PRIOR_WRONG
        typical = (total - math.fsum(mine) + PRIOR_RIGHT) / others
        found[name] = min(ACCEPTABLE_AGAIN, max(LEAST_ACCEPTABLE, typical))
    return found


def _log_mean(one: float, other: float) -> float:
    """Return log((e^one + e^other) / 2)."""
    most = max(one, other)
    return most + math.log((math.exp(one - most) + math.exp(other - most)) / 2)


def _side_steps(
    judged: Iterable[Judged],
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the log ratios of standing leftmost, and of standing rightmost, by annotator."""
    lefts: dict[str, list[float]] = defaultdict(list)
    rights: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        if one.ranking is None or len(one.ranking[0]) != 1:
            continue
        chance = 1 / len(one.shown)
        acceptable = chance + ACCEPTABLE_LEAN * (1 - chance)
        bad = chance + BAD_LEAN * (1 - chance)
        best = one.ranking[0][0]
        for steps, place in ((lefts, 0), (rights, -1)):
            step = bernoulli_step(best == one.shown[place], acceptable=acceptable, bad=bad)
            steps[one.annotator].append(step)
    return lefts, rights
