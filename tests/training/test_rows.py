"""Rows of every kind: each judgement gives rows or one reason, in whatever order they came."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounts.errors import ProductError
from training.ledger import Exclusion, Ledger
from training.options import Imitate, Kind, Options, Votes, refuse_method
from training.rows import Composed, Composer, Flips, Row, Said, pairs_of, rated_pairs
from training.settled import Decided

ANSWERS = st.sampled_from("abcd")
SCORES = st.dictionaries(
    ANSWERS, st.fixed_dictionaries({"help": st.integers(0, 4), "tone": st.integers(0, 4)})
)


@st.composite
def verdicts(draw: st.DrawFn) -> Said:
    """Return anything that somebody can say of the answers to a prompt."""
    one = Said(
        "",
        annotator=draw(st.sampled_from(["1", "2", "3"])),
        exclusion=draw(st.sampled_from([None, None, None, *list(Exclusion)[:6]])),
        margin=draw(st.sampled_from([1.0, 2.0, 3.0])),
    )
    said = draw(st.sampled_from(["ranking", "thumb", "correction", "ratings", "comment"]))
    if said == "ranking":
        groups = draw(st.lists(st.lists(ANSWERS, min_size=1, max_size=2), min_size=1, max_size=4))
        return replace(one, ranking=groups, both_bad=draw(st.booleans()))
    if said == "thumb":
        return replace(one, thumb=draw(st.sampled_from([-1, 1])), answer=draw(ANSWERS))
    if said == "correction":
        thumb = draw(st.sampled_from([None, -1, 1]))
        return replace(one, thumb=thumb, answer=draw(ANSWERS), correction=draw(ANSWERS))
    return replace(one, ratings=draw(SCORES)) if said == "ratings" else one


OPTIONS = st.builds(
    lambda *, by_lead, **given: Options.read(
        given | {"margins": "lead" if by_lead and given["attributes"] else "given"}
    ),
    by_lead=st.booleans(),
    pairs=st.sampled_from(["all", "adjacent"]),
    votes=st.sampled_from(["individual", "majority", "weighted"]),
    min_agreement=st.sampled_from([0, 0.5, 0.6, 1]),
    attributes=st.sampled_from([{}, {"help": 1}, {"help": 0.5, "tone": 2}]),
    gap=st.sampled_from([0, 1, 2]),
    imitate=st.sets(st.sampled_from(["corrections", "thumbs", "best"])),
)
DECIDED = st.one_of(
    st.builds(Decided, thumb=st.sampled_from([-1, 1]), answer=ANSWERS),
    st.builds(
        Decided, ranking=st.lists(st.lists(ANSWERS, min_size=1, max_size=2), min_size=2, max_size=3)
    ),
    st.builds(Decided, ratings=SCORES),
)
COMPETENCE = {"1": 0.9, "2": 0.6, "3": 0.3}


@given(
    st.sampled_from(Kind),
    OPTIONS,
    st.lists(verdicts(), max_size=8),
    st.lists(DECIDED, max_size=3),
    st.integers(0, 99),
)
def test_everything_said_gives_rows_or_one_reason_in_any_order(
    kind: Kind, options: Options, said: list[Said], decided: list[Decided], seed: int
) -> None:
    said = [replace(one, id=f"{number:02}") for number, one in enumerate(said)]
    composed = Composer(kind, options, COMPETENCE).compose(said, decided)
    ledger = Ledger()
    ledger.account([one.id for one in said], composed)  # raises unless each stands once
    ledger.check(len(said))
    assert composed.rows == sorted(composed.rows)
    for row in composed.rows:
        assert row.judgements
        assert row.weight > 0
        assert bool(row.ratings) == (kind == Kind.RATINGS)
        assert 0.5 < row.probability <= 1
        assert row.chosen != row.rejected
        if kind == Kind.PREFERENCE:
            assert row.chosen
            assert row.rejected
        elif kind == Kind.SFT:
            assert not row.rejected
    if options.votes != Votes.INDIVIDUAL:
        sides = [(row.chosen, row.rejected) for row in composed.rows]
        if not any(one.thumb for one in said) and kind == Kind.PREFERENCE:
            assert not {side[::-1] for side in sides} & set(sides), "one verdict on two answers"
    shuffled = random.Random(seed).sample(said, len(said))
    again = Composer(kind, options, COMPETENCE).compose(shuffled, decided[::-1])
    assert again.rows == composed.rows
    assert again.reasons == composed.reasons


def compose(kind: Kind, *said: Said, **options: Any) -> tuple[list[Row], dict[str, Exclusion]]:
    composed = Composer(kind, Options.read(options), COMPETENCE).compose(said)
    return composed.rows, composed.reasons


def ranking(name: str, *answers: str, by: str = "1") -> Said:
    return Said(name, annotator=by, ranking=[[answer] for answer in answers])


def test_rankings_give_all_pairs_or_neighbours() -> None:
    said = [["a"], ["b", "c"], ["d"]]
    assert pairs_of(said) == [
        ("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d"),
    ]  # fmt: skip
    assert pairs_of(said, adjacent=True) == [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
    assert pairs_of([["a"], ["b"], ["a"]]) == [], "a beats b and b beats a"


def test_a_majority_outvotes() -> None:
    said = [ranking("1", "a", "b"), ranking("2", "a", "b"), ranking("3", "b", "a")]
    rows, reasons = compose(Kind.PREFERENCE, *said, votes="majority")
    assert rows == [Row(("1", "2"), "a", "b")]
    assert reasons == {"3": Exclusion.OUTVOTED}
    _, reasons = compose(Kind.PREFERENCE, *said[1:], votes="majority")
    assert set(reasons.values()) == {Exclusion.NO_MAJORITY}
    rows, reasons = compose(Kind.PREFERENCE, *said, votes="majority", min_agreement=0.7)
    assert rows == []
    assert set(reasons.values()) == {Exclusion.BELOW_AGREEMENT}
    rows, reasons = compose(Kind.PREFERENCE, *said, min_agreement=0.6)
    assert [row.judgements for row in rows] == [("1",), ("2",)]
    assert reasons == {"3": Exclusion.BELOW_AGREEMENT}


@pytest.mark.parametrize("votes", ["majority", "weighted"])
def test_a_decision_stands_in_place_of_the_count(votes: str) -> None:
    said = [ranking("1", "a", "b"), ranking("2", "a", "b", by="2"), ranking("3", "b", "a", by="3")]

    def settle(*decided: Decided) -> tuple[list[Row], dict[str, Exclusion]]:
        options = Options.read({"votes": votes, "min_agreement": 1})
        composed = Composer(Kind.PREFERENCE, options, COMPETENCE).compose(said, decided)
        return composed.rows, composed.reasons

    for_b = Decided(ranking=[["b"], ["a", "c"]])
    assert settle(for_b) == (
        [Row(("3",), "b", "a")], {"1": Exclusion.OVERRULED, "2": Exclusion.OVERRULED},
    )  # fmt: skip
    tied = settle(Decided(ranking=[["a", "b"], ["c"]]))
    assert tied == ([], dict.fromkeys("123", Exclusion.OVERRULED))
    low = dict.fromkeys("123", Exclusion.BELOW_AGREEMENT)
    assert settle(for_b, Decided(ranking=[["a"], ["b"]])) == ([], low), "two contradict each other"
    said.pop()
    assert settle(for_b) == ([Row(("1", "2"), "b", "a")], {}), "what nobody said comes from all"


def test_a_decision_on_a_thumb_stands_in_place_of_the_count() -> None:
    said = [Said(name, thumb=thumb, answer="a") for name, thumb in (("1", 1), ("2", 1), ("3", -1))]
    said.append(Said("4", thumb=1, answer="b"))
    bad = [Decided(thumb=-1, answer="a")]
    overruled = {"1": Exclusion.OVERRULED, "2": Exclusion.OVERRULED}
    majority = Options.read({"votes": "majority"})
    found = Composer(Kind.UNPAIRED, majority).compose(said, bad)
    assert (found.rows, found.reasons) == ([Row(("3",), "", "a"), Row(("4",), "b", "")], overruled)
    found = Composer(Kind.PREFERENCE, majority).compose(said, bad)
    assert (found.rows, found.reasons) == ([Row(("3", "4"), "b", "a")], overruled)
    individual = Composer(Kind.UNPAIRED, Options()).compose(said, bad)
    assert len(individual.rows) == 4, "each judgement stays a row of its own"


def test_a_decided_level_stands_in_place_of_the_mean() -> None:
    said = [
        Said("1", "1", ratings={"a": {"help": 1, "tone": 2}, "b": {"help": 5, "tone": 5}}),
        Said("2", "2", ratings={"a": {"help": 4, "tone": 5}}),
        Said("3", "3", ratings={"a": {"help": 2, "tone": 1}}),
    ]
    overruled = {"3": Exclusion.OVERRULED}

    def settle(*decided: Decided) -> tuple[list[Row], dict[str, Exclusion]]:
        options = Options.read({"votes": "majority"})
        composed = Composer(Kind.RATINGS, options).compose(said, decided)
        return [row for row in composed.rows if row.chosen == "a"], composed.reasons

    whole = Decided(ratings={"a": {"help": 4, "tone": 2}})
    # The first met tone, the second help, the third nothing.
    [row], reasons = settle(whole)
    assert (row.judgements, row.annotators, reasons) == (("1", "2"), 2, overruled)
    assert row.ratings == (("help", 4.0), ("tone", 2.0))
    [row], reasons = settle(Decided(ratings={"a": {"help": 3}}))
    assert (row.judgements, reasons) == (("1", "2", "3"), {}), "of tone everybody's word counts"
    assert row.ratings == (("help", 3.0), ("tone", 2.6667))
    [row], reasons = settle(Decided(ratings={"a": {"help": 3, "tone": 4}}))
    assert (row.judgements, reasons) == (("1", "2", "3"), {}), "what nobody said comes from all"
    assert row.ratings == (("help", 3.0), ("tone", 4.0))
    [row], reasons = settle(whole, Decided(ratings={"a": {"help": 1}}))
    assert row.ratings == (("help", 2.3333), ("tone", 2.0)), "two contradict each other on help"
    individual = Composer(Kind.RATINGS, Options()).compose(said, [whole])
    assert len(individual.rows) == 4, "each judgement stays a row of its own"


def test_decided_levels_order_answers_by_their_attributes() -> None:
    said = [
        Said(name, name, ratings={"a": {"help": one}, "b": {"help": other}})
        for name, one, other in (("1", 5, 1), ("2", 4, 2), ("3", 1, 3))
    ]
    options = Options.read({"votes": "majority", "attributes": {"help": 1}})

    def settle(**levels: int) -> Composed:
        decided = Decided(ratings={answer: {"help": level} for answer, level in levels.items()})
        return Composer(Kind.PREFERENCE, options).compose(said, [decided])

    found = settle(a=1, b=2)
    assert found.rows == [Row(("3",), "b", "a")]
    assert found.reasons == {"1": Exclusion.OVERRULED, "2": Exclusion.OVERRULED}
    assert settle(a=2, b=2).rows == [], "a tie"
    assert settle(a=1).rows == [Row(("1", "2"), "a", "b")], "half a decision is none"


def test_competence_gives_a_soft_label() -> None:
    """Odds of 9 : 1 for a, and 3 : 2 for b: 9 / 1 over 3 / 2 is 6, and 6 / 7 is 0.8571."""
    said = [ranking("1", "a", "b", by="1"), ranking("2", "b", "a", by="2")]
    rows, reasons = compose(Kind.PREFERENCE, *said, votes="weighted")
    assert rows == [Row(("1", "2"), "a", "b", 1.0, 1.0, 0.8571)]
    assert reasons == {}
    # Whoever is mostly wrong says the opposite of what they say.
    rows, _ = compose(Kind.PREFERENCE, ranking("1", "a", "b", by="3"), votes="weighted")
    assert rows == [Row(("1",), "b", "a", 1.0, 1.0, 0.7)]


def test_thumbs_up_and_down_on_one_prompt_are_pairs() -> None:
    def thumb(name: str, answer: str, value: int) -> Said:
        return Said(name, thumb=value, answer=answer)

    said = [thumb("1", "a", 1), thumb("2", "b", 1), thumb("3", "c", -1), thumb("4", "c", 1)]
    said.append(thumb("5", "c", -1))
    rows, reasons = compose(Kind.PREFERENCE, *said)
    assert rows == [Row(("1", "3", "5"), "a", "c"), Row(("2", "3", "5"), "b", "c")]
    assert reasons == {"4": Exclusion.OUTVOTED}
    assert compose(Kind.PREFERENCE, said[0])[1] == {"1": Exclusion.THUMB}
    rows, _ = compose(Kind.UNPAIRED, *said[:3])
    assert rows == [Row(("1",), "a", ""), Row(("2",), "b", ""), Row(("3",), "", "c")]
    rows, reasons = compose(Kind.UNPAIRED, *said, votes="weighted")
    assert Row(("3", "5"), "", "c", weight=0.3333) in rows
    assert reasons == {"4": Exclusion.OUTVOTED}


def test_corrections_are_better_than_what_they_correct() -> None:
    said = Said("1", thumb=-1, answer="a", correction="b")
    assert compose(Kind.PREFERENCE, said)[0] == [Row(("1",), "b", "a")]
    assert compose(Kind.UNPAIRED, said)[0] == [Row(("1",), "", "a"), Row(("1",), "b", "")]
    assert compose(Kind.SFT, said)[0] == [Row(("1",), "b", "")]
    same = replace(said, correction="a")
    assert compose(Kind.PREFERENCE, same) == ([], {"1": Exclusion.EQUAL_TEXTS})


def test_only_what_was_chosen_is_imitated() -> None:
    said = [
        Said("1", thumb=1, answer="a"),
        Said("2", thumb=-1, answer="a"),
        Said("3", answer="a", correction="b"),
        Said("4", ranking=[["c", "d"], ["a"]]),
    ]
    rows, reasons = compose(Kind.SFT, *said, imitate=[Imitate.BEST, Imitate.CORRECTIONS])
    assert rows == [Row(("3",), "b", ""), Row(("4",), "c", ""), Row(("4",), "d", "")]
    assert reasons == {"1": Exclusion.THUMB, "2": Exclusion.THUMB_DOWN}
    assert compose(Kind.SFT, said[3])[1] == {"4": Exclusion.RANKING}


def test_ratings_give_pairs_from_a_gap_on() -> None:
    ratings = {"a": {"help": 4, "tone": 1}, "b": {"help": 2, "tone": 3}, "c": {"help": 1}}
    assert rated_pairs(ratings, {"help": 1}, gap=2) == {("a", "b"): 2, ("a", "c"): 3}
    assert rated_pairs(ratings, {"help": 1, "tone": 1}, gap=1) == {}, "c has no tone"
    assert rated_pairs(ratings, {"tone": 0.1}, gap=0) == {("b", "a"): 0.2}
    rows, reasons = compose(Kind.PREFERENCE, Said("1", ratings=ratings))
    assert (rows, reasons) == ([], {"1": Exclusion.RATING})
    said = Said("1", ratings=ratings)
    assert compose(Kind.PREFERENCE, said, attributes={"help": 1}, gap=9)[1] == {"1": Exclusion.TIE}
    alone = Said("1", ratings={"a": {"help": 4}})
    assert compose(Kind.PREFERENCE, alone, attributes={"help": 1})[1] == {"1": Exclusion.RATING}


def test_the_lead_of_the_sums_is_the_margin_where_asked() -> None:
    said = [
        Said("1", "1", ratings={"a": {"help": 5, "tone": 1}, "b": {"help": 2, "tone": 4}}),
        Said("2", "2", ratings={"a": {"help": 4, "tone": 2}, "b": {"help": 3, "tone": 2}}),
        Said("3", "3", margin=2, correction="c", answer="a"),
        Said("4", "4", ratings={"a": {"help": 1, "tone": 5}, "b": {"help": 5, "tone": 5}}),
    ]
    asked = {"attributes": {"help": 1, "tone": -0.5}}  # a over b by 4.5, 1 and -4
    assert {row.margin for row in compose(Kind.PREFERENCE, *said, **asked)[0]} == {1, 2}
    rows, _ = compose(Kind.PREFERENCE, *said, **asked, margins="lead")
    assert [(row.chosen, row.rejected, row.margin) for row in rows] == [
        ("a", "b", 4.5), ("a", "b", 1.0), ("c", "a", 2), ("b", "a", 4.0),
    ]  # fmt: skip
    rows, reasons = compose(Kind.PREFERENCE, *said, **asked, margins="lead", votes="majority")
    assert rows[0] == Row(("1", "2"), "a", "b", 2.75), "the mean of those who won"
    assert reasons == {"4": Exclusion.OUTVOTED}
    levels = {"a": {"help": 4, "tone": 1}, "b": {"help": 1, "tone": 1}}
    options = Options.read({**asked, "margins": "lead", "votes": "majority"})
    composed = Composer(Kind.PREFERENCE, options).compose(said, [Decided(ratings=levels)])
    assert composed.rows[0] == Row(("1", "2"), "a", "b", 3.0), "as the lead decided"


def test_the_flip_rate_suggests_a_label_smoothing() -> None:
    """Three in eight pairs of votes differ: d = 3/8, so e = (1 - sqrt(1/4)) / 2 = 1/4."""
    assert Flips(compared=8, opposed=3).as_dict()["label_smoothing"] == 0.25
    assert Flips().as_dict()["label_smoothing"] is None
    composer = Composer(Kind.PREFERENCE, Options())
    composer.compose([ranking("1", "a", "b"), ranking("2", "b", "a"), ranking("3", "a", "b")])
    assert (composer.flips.compared, composer.flips.opposed) == (3, 2)


@pytest.mark.parametrize(
    ("kind", "method", "fits"),
    [("preference", "dpo", True), ("unpaired", "kto", True), ("unpaired", "dpo", False),
     ("sft", "sft", True), ("sft", "kto", False)],
)  # fmt: skip
def test_a_method_takes_the_kinds_that_it_learns_from(kind: str, method: str, fits: bool) -> None:
    if fits:
        refuse_method(kind, method)
    else:
        with pytest.raises(ProductError, match="cannot learn from this snapshot"):
            refuse_method(kind, method)


@pytest.mark.parametrize(
    "options",
    [
        {"pears": "all"},
        {"votes": "loudest"},
        {"min_agreement": 2},
        {"gap": "wide"},
        {"margins": "lead"},
        {"margins": "wide", "attributes": {"help": 1}},
        {"max_characters": -1},
    ],
)
def test_it_refuses_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ProductError):
        Options.read(options)
