"""Bradley–Terry with ties: numbers derived by hand, and an order recovered from a noisy crowd."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import random
import time
from pathlib import Path

import pytest

from feedback.agreement import Judged
from feedback.ratings import MIDDLE, POINTS, Comparison, Leaderboard, rate
from feedback.simulation import Profile, Question, judge_all

OUTPUTS = Path("/work/shared/data/instruction_outputs.jsonl.gz")
# Best first, as the README beside the data has it.
ORDER = [
    "text-davinci-003",
    "text-davinci-002",
    "text-davinci-001",
    "davinci-self-instruct-and-superni-ft",
    "davinci-self-instruct",
    "davinci-superni-ft",
    "davinci-t0-ft",
    "davinci",
]


def games(*results: tuple[str, str, int, int], **terms: float) -> list[Comparison]:
    """Return comparisons: (first, second, outcome, how often), each a cluster of its own."""
    numbers = itertools.count()
    return [
        Comparison(first, second, outcome, cluster=next(numbers), **terms)  # type: ignore[arg-type]
        for first, second, outcome, times in results
        for _ in range(times)
    ]


def distance(board: Leaderboard, one: str, other: str) -> float:
    """Return the distance of two players on the log scale."""
    points = {rating.player: rating.points.value for rating in board.ratings}
    return (points[one] - points[other]) / POINTS


def test_it_finds_the_odds_of_two_players() -> None:
    # 300 wins to 100: the odds are 3, so d = ln 3 but for the prior's pull.
    board = rate(games(("a", "b", 1, 300), ("a", "b", -1, 100)))
    assert distance(board, "a", "b") == pytest.approx(math.log(3), rel=1e-3)
    first, second = board.ratings
    assert (first.player, first.wins, first.ties, first.losses) == ("a", 300, 0, 100)
    assert (second.player, second.wins, second.ties, second.losses) == ("b", 100, 0, 300)
    assert first.points.value + second.points.value == pytest.approx(2 * MIDDLE)
    # Against the average player, half as far away: sqrt 3 to 1.
    assert first.win_chance == pytest.approx(math.sqrt(3) / (1 + math.sqrt(3)), rel=1e-3)


def test_it_takes_ties_into_account() -> None:
    # Davidson: at the maximum, expected counts meet the observed ones. 400 wins, 100 losses and 200
    # ties give exp(d) = 4 and nu = 200 / sqrt(400 * 100) = 1.
    board = rate(games(("a", "b", 1, 400), ("a", "b", -1, 100), ("a", "b", 0, 200)))
    assert distance(board, "a", "b") == pytest.approx(math.log(4), rel=1e-3)
    assert board.tie_share == pytest.approx(2 / 7)


def test_it_chains_players_who_never_met() -> None:
    # a beats b 2 : 1, b beats c 3 : 1; so a to c is 6 : 1.
    played = games(("a", "b", 1, 200), ("a", "b", -1, 100), ("b", "c", 1, 300), ("c", "b", 1, 100))
    board = rate(played)
    assert distance(board, "a", "c") == pytest.approx(math.log(6), rel=2e-3)
    assert not board.apart
    assert rate([*played, *games(("x", "y", 1, 5))]).apart


def test_it_stays_finite_where_somebody_always_wins() -> None:
    board = rate(games(("a", "b", 1, 20)))
    assert 1 < distance(board, "a", "b") < 20
    assert rate(games(("a", "b", 0, 20))).ratings[0].points.value == pytest.approx(MIDDLE)


def test_it_has_nothing_to_say_of_nothing() -> None:
    assert rate([]).ratings == []


def test_it_takes_the_side_out() -> None:
    # Equals, but the left one wins 3 : 1, and a stood left three times in four.
    played = [
        *games(("a", "b", 1, 225), ("a", "b", -1, 75), side=1),
        *games(("a", "b", 1, 25), ("a", "b", -1, 75), side=-1),
    ]
    without, with_side = rate(played), rate(played, side=True)
    # 250 wins to 150 without the term; with it d = 0 and side = ln 3 explain every cell.
    assert distance(without, "a", "b") == pytest.approx(math.log(250 / 150), rel=1e-2)
    assert distance(with_side, "a", "b") == pytest.approx(0, abs=1e-3)
    assert without.side is None
    assert with_side.side is not None
    assert with_side.side.value == pytest.approx(POINTS * math.log(3), rel=1e-2)
    assert with_side.side.low > 0


def test_it_takes_the_length_out() -> None:
    # Twice as long wins 2 : 1 whoever wrote it, and a is the longer one three times in four.
    longer = math.log(2)
    played = [
        *games(("a", "b", 1, 200), ("a", "b", -1, 100), length=longer),
        *games(("a", "b", 1, 33), ("a", "b", -1, 67), length=-longer),
    ]
    board = rate(played, length=True)
    assert distance(board, "a", "b") == pytest.approx(0, abs=0.02)
    assert board.length is not None
    # ln 2 in steps of 0.1 is counted as 0.7: within one percent.
    assert board.length.value == pytest.approx(POINTS * math.log(2), rel=0.02)


def test_its_intervals_hold_the_truth_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(60):
        chooser = random.Random(seed)
        played = [
            Comparison("a", "b", 1 if chooser.random() < 2 / 3 else -1, cluster=number)
            for number in range(150)
        ]
        points = {one.player: one.points for one in rate(played, seed=seed).ratings}["a"]
        covered += points.low <= MIDDLE + POINTS * math.log(2) / 2 <= points.high
    assert 0.85 <= covered / 60 <= 1


def test_it_resamples_prompts_not_comparisons() -> None:
    # Ten prompts, each judged alike thirty times: as little is known as from ten comparisons.
    won = [1, 1, 1, 1, 1, 1, 1, -1, -1, -1]
    many = [
        Comparison("a", "b", outcome, cluster=prompt)
        for prompt, outcome in enumerate(won)
        for _ in range(30)
    ]
    few = [Comparison("a", "b", outcome, cluster=prompt) for prompt, outcome in enumerate(won)]
    wide, narrow = rate(few).ratings[0].points, rate(many).ratings[0].points
    assert narrow.high - narrow.low > 0.7 * (wide.high - wide.low)


def test_it_keeps_to_its_time() -> None:
    chooser = random.Random(1)
    played = [
        Comparison(
            f"v{chooser.randrange(8)}",
            f"w{chooser.randrange(8)}",
            chooser.choice((1, 0, -1)),
            side=chooser.choice((1, -1)),
            length=chooser.gauss(0, 1),
            cluster=number // 4,
        )
        for number in range(40_000)
    ]
    started = time.monotonic()
    board = rate(played, side=True, length=True, resamples=100_000, seconds=1.0)
    assert board.resamples >= 20
    assert time.monotonic() - started < 20  # the machine may be busy; unbounded, it takes hours


def compared(judged: list[Judged], who: dict[int, str]) -> list[Comparison]:
    found = []
    for one in judged:
        assert one.ranking is not None
        place = {response: rank for rank, group in enumerate(one.ranking) for response in group}
        for left, right in itertools.combinations(one.shown, 2):
            lead = place[right] - place[left]
            outcome = (lead > 0) - (lead < 0)
            found.append(Comparison(who[left], who[right], outcome, side=1, cluster=one.item))
    return found


def kendall(order: list[str]) -> float:
    pairs = list(itertools.combinations(order, 2))
    return sum(1 if ORDER.index(a) < ORDER.index(b) else -1 for a, b in pairs) / len(pairs)


@pytest.mark.skipif(not OUTPUTS.exists(), reason=f"{OUTPUTS} is not on this machine")
def test_it_recovers_the_order_of_eight_models_from_a_noisy_crowd() -> None:
    with gzip.open(OUTPUTS, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    crowd = [
        *[Profile.HONEST] * 4,
        *[Profile.NOISY] * 10,
        *[Profile.LEFT_BIASED] * 3,
        *[Profile.SPAMMING] * 3,
    ]
    taus = []
    for seed in range(5):
        chooser = random.Random(seed)
        who: dict[int, str] = {}
        worth: dict[tuple[str, str], float] = {}
        items = []
        for row in rows:
            prompt = f"{row['instruction']}\n{row['input']}"
            responses = []
            for model in chooser.sample(ORDER, 4):
                text = row["responses"][model]
                who[len(who)] = model
                responses.append((len(who) - 1, text))
                # The hidden truth: the model's place, and how well this one answer came out.
                worth[prompt, text] = -ORDER.index(model) / 2 + chooser.gauss(0, 1)
            items.append(Question(prompt=prompt, responses=tuple(responses)))
        judged = judge_all(
            items,
            crowd=crowd,
            preference=lambda prompt, text, worth=worth: worth[prompt, text],  # type: ignore[misc]
            noise=0.6,
            seed=seed,
        )
        board = rate(compared(judged, who), side=True, resamples=20)
        taus.append(kendall([one.player for one in board.ratings]))
    assert min(taus) >= 0.9, taus
