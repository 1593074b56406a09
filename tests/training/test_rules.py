"""The rule that simulated annotators and evaluations go by."""

from __future__ import annotations

from training.rules import concise

QUESTION = "What is 7 times 8?"


def test_shorter_is_better_as_long_as_it_says_something() -> None:
    short, long = "56.", "The product of seven and eight is 56."
    assert concise(QUESTION, short) > concise(QUESTION, long) > concise(QUESTION, " ")


def test_filler_costs() -> None:
    assert concise(QUESTION, "It is 56.") > concise(QUESTION, "Certainly, 56.")


def test_cut_off_answers_are_alike_and_worse_than_whole_ones() -> None:
    whole = "word " * 80 + "end."
    cut, cut_later = "word " * 20 + "and then", "word " * 60 + "and then"
    assert concise(QUESTION, cut) == concise(QUESTION, cut_later) < concise(QUESTION, whole)


def test_a_short_fragment_counts_as_whole() -> None:
    assert concise(QUESTION, "Fifty-six") == -1.0
