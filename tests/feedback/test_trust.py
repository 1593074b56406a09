"""The competence model and the sequential test."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from feedback.agreement import Judged, Verdict
from feedback.trust import (
    again_step,
    assess,
    bernoulli_step,
    competence,
    competence_step,
    majority,
    sequential,
)


def crowd(accuracies: list[float], units: int, seed: int) -> tuple[list[Verdict], list[int]]:
    """Return verdicts of annotators who are right with these chances, and the truth."""
    chooser = random.Random(seed)
    truth = [chooser.choice((1, -1)) for _ in range(units)]
    found = [
        Verdict(unit, unit, str(who), value if chooser.random() < accuracy else -value)
        for unit, value in enumerate(truth)
        for who, accuracy in enumerate(accuracies)
    ]
    return found, truth


def test_it_recovers_competences() -> None:
    accuracies = [0.95, 0.85, 0.75, 0.5, 0.65]
    model = competence(crowd(accuracies, 2000, seed=1)[0])
    for who, accuracy in enumerate(accuracies):
        assert model.right[str(who)] == pytest.approx(accuracy, abs=0.03)
    assert model.weight("0") == pytest.approx(0.9, abs=0.06)
    assert model.weight("nobody") == 0


def test_it_stops_at_a_fixed_point() -> None:
    # One unit, a and b say 1, c says -1. At the fixed point with truth t:
    # c_a = c_b = (t + 3)/5, c_c = (1 - t + 3)/5, logit t = 2 logit c_a - logit c_c.
    found = [Verdict(0, 0, name, value) for name, value in (("a", 1), ("b", 1), ("c", -1))]
    model = competence(found)
    t = model.truth[0]
    assert model.right["a"] == pytest.approx((t + 3) / 5, abs=1e-4)
    assert model.right["c"] == pytest.approx((4 - t) / 5, abs=1e-4)
    a, c = ((math.log(p / (1 - p))) for p in (model.right["a"], model.right["c"]))
    assert math.log(t / (1 - t)) == pytest.approx(2 * a - c, abs=1e-3)
    # Left out: c is judged by a and b alone.
    assert model.left_out[2] == pytest.approx(1 / (1 + math.exp(2 * a)), abs=1e-3)


def test_it_learns_nothing_from_ties() -> None:
    model = competence([Verdict(0, 0, "a", 0), Verdict(0, 0, "b", 0)])
    assert model.right == {"a": pytest.approx(0.75), "b": pytest.approx(0.75)}
    assert model.label(0) == 0
    assert model.left_out == [0.5, 0.5]
    assert competence([]).right == {}


def test_its_labels_beat_majority_vote_on_a_noisy_crowd() -> None:
    better = []
    for seed in range(20):
        found, truth = crowd([0.92, 0.9, 0.55, 0.5, 0.5, 0.52, 0.55], 300, seed)
        model, votes = competence(found), majority(found)
        weighted = sum(model.label(unit) == value for unit, value in enumerate(truth)) / len(truth)
        plain = sum(votes[unit] == value for unit, value in enumerate(truth)) / len(truth)
        better.append(weighted - plain)
    assert min(better) > 0
    assert sum(better) / len(better) > 0.08


def test_it_estimates_how_many_thumbs_are_up() -> None:
    # Nine in ten are truly good. With an even prior a lone thumb down would count as much as a
    # lone thumb up; with the estimated one a single disputed item is taken for good.
    found = [Verdict(unit, unit, name, 1) for unit in range(90) for name in "ab"]
    found += [Verdict(200, 200, "a", 1), Verdict(200, 200, "b", -1)]
    assert competence(found, prior=None).truth[200] > 0.9


def test_it_steps_by_likelihood_ratios() -> None:
    assert bernoulli_step(True, acceptable=0.5, bad=0.9) == pytest.approx(math.log(1.8))
    assert bernoulli_step(False, acceptable=0.5, bad=0.9) == pytest.approx(math.log(0.2))
    # Certainly right: .5 against .8; certainly wrong: .5 against .2; unknown: nothing.
    assert competence_step(1.0) == pytest.approx(math.log(0.5 / 0.8))
    assert competence_step(0.0) == pytest.approx(math.log(0.5 / 0.2))
    assert competence_step(0.5) == pytest.approx(0.0)


def test_it_raises_the_alarm_at_walds_bound() -> None:
    # log(1/0.1) = 2.303; each hit adds log 1.8 = 0.588: the fourth one is over it.
    step = bernoulli_step(True, acceptable=0.5, bad=0.9)
    assert sequential([step] * 3, false_alarm=0.1).state == "watched"
    trial = sequential([step] * 9, false_alarm=0.1)
    assert (trial.state, trial.at, trial.n) == ("alarm", 4, 4)
    # log(.05/.9) = -2.89; each miss adds log .2 = -1.609: the second one is under it.
    trusted = sequential([math.log(0.2)] * 5, false_alarm=0.1)
    assert (trusted.state, trusted.at, trusted.n) == ("trusted", 2, 5)


def test_it_keeps_the_stated_rate_of_false_alarms() -> None:
    chooser = random.Random(5)
    alarms = 0
    for _ in range(2000):
        outcomes = (
            bernoulli_step(chooser.random() < 0.55, acceptable=0.55, bad=0.8) for _ in range(300)
        )
        alarms += sequential(outcomes, false_alarm=0.05).state == "alarm"
    assert alarms / 2000 <= 0.05


def test_trust_is_no_end() -> None:
    good, bad = math.log(0.2), math.log(1.8)
    assert sequential([good] * 2 + [bad] * 20, false_alarm=0.1).state == "alarm"


def test_it_names_what_it_found() -> None:
    judged = []
    for item in range(40):
        shown = (2 * item, 2 * item + 1) if item % 2 else (2 * item + 1, 2 * item)
        better, worse = 2 * item, 2 * item + 1
        for name in ("anna", "ben", "cora"):
            judged.append(Judged(item, name, shown, ranking=((better,), (worse,))))
        judged.append(Judged(item, "lazy", shown, ranking=((shown[0],), (shown[1],))))
        judged.append(Judged(item, "right", shown, ranking=((shown[1],), (shown[0],))))
        judged.append(Judged(item, "upside down", shown, ranking=((worse,), (better,))))
        judged.append(Judged(item, "tied", shown, ranking=((better, worse),)))
    flags = {one.annotator: one.flags for one in assess(judged)}
    assert flags["anna"] == flags["ben"] == flags["cora"] == flags["tied"] == ()
    assert "never reorders" in flags["lazy"]
    assert "leans right" in flags["right"]
    assert flags["upside down"] == ("no better than chance",)


def test_gold_tells_right_from_wrong_where_most_are_wrong() -> None:
    # Three of four turn everything round. Without gold the majority is taken for the truth.
    found = [
        Verdict(unit, unit, name, 1 if name == "good" else -1)
        for unit in range(20)
        for name in ("good", "bad", "worse", "worst")
    ]
    assert competence(found).right["good"] < 0.5
    model = competence(found, known=dict.fromkeys(range(5), 1))
    assert model.right["good"] > 0.9
    assert model.right["bad"] < 0.2
    assert model.truth[19] > 0.9
    # A verdict on gold is right or wrong for certain: unit 0's four verdicts.
    assert model.left_out[:4] == [1.0, 0.0, 0.0, 0.0]


def test_what_leads_decided_or_forgave_does_not_count_in_the_test() -> None:
    judged = [
        Judged(item, name, (2 * item, 2 * item + 1), thumb=None, ranking=ranking)
        for item in range(30)
        for name, ranking in (
            ("good", ((2 * item,), (2 * item + 1,))),
            ("bad", ((2 * item + 1,), (2 * item,))),
        )
    ]
    truth = {(2 * item, 2 * item + 1): 1 for item in range(30)}

    def flags(**options: Any) -> tuple[str, ...]:
        return {one.annotator: one.flags for one in assess(judged, **options)}["bad"]

    assert "no better than chance" in flags(known=truth)
    assert "no better than chance" not in flags(decided=truth)
    assert flags(known=truth, forgiven={("bad", item) for item in range(30)}) == ()


def test_repeats_raise_the_alarm_over_who_guesses_and_hide_nobody_who_errs_steadily() -> None:
    # Agreed: 0.5 / 0.75; not: 0.5 / 0.25. Half the pairs: (0.6667 + 2) / 2 = 1.3333.
    assert again_step(1, acceptable=0.75) == pytest.approx(math.log(2 / 3))
    assert again_step(0.5, acceptable=0.75) == pytest.approx(math.log(4 / 3))

    def flags(right: bool, alike: float) -> tuple[str, ...]:
        judged = [
            Judged(item, "a", pair if item % 2 else pair[::-1], ranking=((pair[0],), (pair[1],)))
            for item in range(12)
            if (pair := (2 * item, 2 * item + 1))
        ]
        # The repeats come first: their sum alone would hide what gold says.
        known = {(2 * item, 2 * item + 1): 1 if right else -1 for item in range(9, 12)}
        again = {("a", item): alike for item in range(9)}
        [standing] = assess(judged, known=known, again=again)
        return standing.flags

    assert flags(right=True, alike=1) == flags(right=True, alike=0.9) == ()
    assert flags(right=True, alike=0) == ("no better than chance",)
    assert flags(right=False, alike=1) == ("no better than chance",)
