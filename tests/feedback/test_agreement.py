"""Agreement of annotators, against numbers derived by hand."""

from __future__ import annotations

import math

import pytest

from feedback.agreement import (
    Judged,
    Verdict,
    agreement_between,
    agreement_by_item,
    agreement_with_rest,
    alpha,
    kept_order,
    left_lean,
    median_seconds,
    repeats,
    self_consistency,
    share,
    speed_outliers,
    verdicts,
)


def said(*groups: tuple[int, ...]) -> list[Verdict]:
    """Return verdicts: each group is one unit, its values those of a, b, c … in turn."""
    return [
        Verdict(unit, unit, "abcdefgh"[index], value)
        for unit, values in enumerate(groups)
        for index, value in enumerate(values)
    ]


def ranked(
    shown: tuple[int, ...], *groups: tuple[int, ...], by: str = "a", item: int = 1
) -> Judged:
    return Judged(item, by, shown, ranking=groups)


def test_it_turns_a_ranking_into_verdicts_on_its_pairs() -> None:
    found = verdicts([ranked((7, 5, 9), (9,), (5, 7))])
    # 5 and 7 share a place; 9 beats both, so the lower id of each of those pairs loses.
    assert {one.unit: one.value for one in found} == {(5, 7): 0, (5, 9): -1, (7, 9): -1}


def test_it_turns_a_thumb_into_one_verdict() -> None:
    assert verdicts([Judged(3, "a", (8,), thumb=-1)]) == [Verdict(3, 3, "a", -1)]


def test_it_computes_nominal_alpha() -> None:
    # Observed disagreement 2/6 = 1/3. Three +1 and three -1 of six: expected 2*3*3/(6*5) = 0.6.
    found = said((1, 1), (1, -1), (-1, -1))
    assert alpha(found, mirrored=False) == pytest.approx(1 - (1 / 3) / 0.6)


def test_it_computes_ordinal_alpha() -> None:
    # n(-1, 0, 1) = 2, 1, 3 of 6. Squared ordinal distances: (-1, 0) (3 - 1.5)^2 = 2.25,
    # (0, 1) (4 - 2)^2 = 4, (-1, 1) (6 - 2.5)^2 = 12.25. Observed 2*4/6 = 4/3; expected
    # 2*(2*1*2.25 + 1*3*4 + 2*3*12.25)/(6*5) = 6.
    found = said((1, 0), (1, 1), (-1, -1))
    assert alpha(found, level="ordinal", mirrored=False) == pytest.approx(1 - (4 / 3) / 6)


def test_it_does_not_matter_to_alpha_which_response_is_called_first() -> None:
    # Everybody agrees that the lower id is better, but one. Unmirrored, chance alone would agree
    # as much; mirrored: n = 6 + 6, observed 1/3, expected 2*6*6/(12*11).
    found = said((1, 1), (1, -1), (1, 1))
    assert alpha(found) == pytest.approx(1 - (1 / 3) / (72 / 132))
    assert alpha(said((1, 1), (1, -1), (-1, -1))) == pytest.approx(alpha(found))


def test_it_has_no_alpha_without_overlap_or_variety() -> None:
    assert alpha([]) is None
    assert alpha(said((1,), (-1,))) is None
    assert alpha(said((1, 1), (1, 1)), mirrored=False) is None
    assert alpha(said((1, 1), (1, 1))) == pytest.approx(1.0)


def test_it_compares_each_annotator_with_the_rest() -> None:
    # a: with (1, 0) -> (1 + .5)/2 = .75, then with (-1, -1) -> 0; mean .375 of two items.
    found = agreement_with_rest(said((1, 1, 0), (1, -1, -1)))
    assert found["a"].value == pytest.approx(0.375)
    assert found["a"].n == 2
    # b: (1 + .5)/2 and (0 + 1)/2.
    assert found["b"].value == pytest.approx(0.625)
    assert agreement_with_rest(said((1,))) == {}


def test_it_compares_every_two_annotators() -> None:
    found = agreement_between(said((1, 1, 0), (1, -1, -1)))
    assert {names: one.value for names, one in found.items()} == {
        ("a", "b"): 0.5,
        ("a", "c"): 0.25,
        ("b", "c"): 0.75,
    }


def test_it_counts_items_not_pairs_as_cases() -> None:
    judged = [ranked((1, 2, 3, 4), (1,), (2,), (3,), (4,), by=name) for name in ("a", "b")]
    assert agreement_with_rest(verdicts(judged))["a"].n == 1


def test_it_puts_the_most_disputed_item_first() -> None:
    assert list(agreement_by_item(said((1, 1), (1, -1), (1, 0))).items()) == [
        (1, 0.0),
        (2, 0.5),
        (0, 1.0),
    ]


def test_it_compares_repeats_with_their_first_showing() -> None:
    found = [
        Verdict(1, "x", "a", 1),
        Verdict(2, "x", "a", 1),
        Verdict(3, "y", "a", 1),
        Verdict(4, "y", "a", -1),
        Verdict(1, "x", "b", 1),
    ]
    consistency = self_consistency(repeats(found))
    assert consistency["a"].value == 0.5
    assert consistency["a"].n == 2
    assert "b" not in consistency


def test_it_measures_the_left_lean() -> None:
    judged = [
        ranked((1, 2), (1,), (2,)),
        ranked((1, 2), (2,), (1,)),
        ranked((2, 1), (2,), (1,)),
        ranked((2, 1), (1, 2)),  # a tie has no best
    ]
    found = left_lean(judged)["a"]
    assert (found.value, found.n) == (pytest.approx(2 / 3), 3)
    # Two of four are exactly as shown: the tie is not.
    assert kept_order(judged)["a"].value == 0.5


def test_it_gives_wilsons_interval() -> None:
    # 1 of 2: centre (.5 + z2/4)/(1 + z2/2) = .5; half = z/(1 + z2/2) * sqrt(1/8 + z2/16).
    found = share(1, 2)
    assert found is not None
    z2 = 1.959963984540054**2
    half = math.sqrt(z2) / (1 + z2 / 2) * math.sqrt(1 / 8 + z2 / 16)
    assert (found.low, found.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    assert share(0, 0) is None


def test_it_finds_who_is_far_quicker_or_slower() -> None:
    judged = [Judged(1, "a", (1,), thumb=1, seconds=seconds) for seconds in (1, 3, 100)]
    assert median_seconds(judged) == {"a": 3}
    # Logs of 8, 10, 12.5 are ln 1.25 apart; MAD 0.2231, sigma 0.331: 3.5 sigma is a factor 3.18.
    crowd = {"a": 8.0, "b": 10.0, "c": 12.5, "d": 8.0, "e": 12.5, "f": 10.0}
    assert speed_outliers(crowd) == {}
    assert speed_outliers(crowd | {"g": 2.0}) == {"g": "fast"}
    assert speed_outliers(crowd | {"g": 50.0}) == {"g": "slow"}
    assert speed_outliers({"a": 1.0, "b": 100.0}) == {}
