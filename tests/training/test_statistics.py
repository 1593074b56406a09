"""Intervals, with numbers worked out by hand."""

from __future__ import annotations

import pytest

from training.statistics import win_rate


def test_independent_prompts_give_wilsons_interval() -> None:
    # 8 wins of 10: centre (0.8 + 3.8415/20) / (1 + 3.8415/10) = 0.71674
    # half 1.95996/1.38415 * sqrt(0.016 + 3.8415/400) = 0.22660
    found = win_rate([[1.0]] * 8 + [[0.0]] * 2)
    assert found.value == pytest.approx(0.8)
    assert found.n == 10
    assert found.low == pytest.approx(0.49016, abs=1e-4)
    assert found.high == pytest.approx(0.94333, abs=1e-4)


def test_prompts_that_agree_with_themselves_count_once() -> None:
    alike = win_rate([[1.0] * 4] * 8 + [[0.0] * 4] * 2)
    assert alike.n == 40
    assert alike.low == pytest.approx(win_rate([[1.0]] * 8 + [[0.0]] * 2).low, abs=1e-6)


def test_a_clean_sweep_is_still_careful() -> None:
    assert win_rate([[1.0] * 4] * 16).low == pytest.approx(0.806, abs=1e-3)


def test_ties_count_one_half() -> None:
    assert win_rate([[0.5, 0.5], [1.0, 0.0]]).value == 0.5


def test_no_comparison_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        win_rate([])
