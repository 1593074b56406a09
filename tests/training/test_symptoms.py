"""Plain warnings from a run's metrics: each where it should, and not elsewhere."""

from __future__ import annotations

from typing import Any

from training.symptoms import Metrics, collapse, length, overfit, saturation, symptoms, too_little


def logged(steps: int = 20, **ends: tuple[float, float]) -> Metrics:
    """Return metrics that go in a straight line from the first to the second value."""
    return [
        (step, {name: a + (b - a) * step / (steps - 1) for name, (a, b) in ends.items()})
        for step in range(steps)
    ]


def heldout(accuracy: float, high: float) -> dict[str, Any]:
    after = {"reward_accuracy": accuracy, "reward_accuracy_high": high}
    return {"evaluation": {"after": after}, "prompts": 500, "rows": {"used": 500}}


def test_it_tells_a_collapse_from_the_usual_fall() -> None:
    assert "fell from" in collapse(logged(**{"logps/chosen": (-100.0, -200.0)}))
    assert collapse(logged(**{"logps/chosen": (-100.0, -115.0)})) == ""
    assert collapse(logged(**{"logps/chosen": (-100.0, -60.0)})) == ""
    assert collapse(logged(3, **{"logps/chosen": (-100.0, -900.0)})) == "", "too few steps to say"


def test_it_tells_when_margins_are_saturated() -> None:
    clear = {"rewards/margins": (0.0, 9.0), "rewards/accuracies": (1.0, 1.0)}
    assert "saturated" in saturation(logged(**clear))
    assert saturation(logged(**clear | {"rewards/accuracies": (0.5, 0.9)})) == ""
    assert saturation(logged(**clear | {"rewards/margins": (0.0, 2.0)})) == ""


def test_it_tells_learning_by_heart_from_a_small_heldout_part() -> None:
    metrics = logged(**{"rewards/accuracies": (0.5, 1.0)})
    assert "by heart" in overfit(metrics, heldout(0.6, 0.7))
    assert overfit(metrics, heldout(0.6, 1.0)) == "", "the interval reaches the training part"
    assert overfit(metrics, heldout(0.9, 0.95)) == ""


def test_it_tells_when_length_gives_the_choice_away() -> None:
    assert "2.0 times as long" in length(chosen=60, rejected=30)
    assert length(chosen=30, rejected=60) == ""
    assert length(chosen=0, rejected=0) == ""


def test_it_tells_when_there_is_too_little_data() -> None:
    assert "12 prompts" in too_little({"prompts": 12})
    assert "60 pairs" in too_little({"prompts": 55, "rows": {"used": 60}})
    assert too_little({"prompts": 500, "rows": {"used": 500}}) == ""


def test_a_healthy_run_gets_no_warning() -> None:
    metrics = logged(
        **{
            "logps/chosen": (-100.0, -105.0),
            "rewards/margins": (0.0, 1.0),
            "rewards/accuracies": (0.5, 0.8),
        }
    )
    even = {"chosen": 40.0, "rejected": 38.0}
    assert symptoms(metrics, report=heldout(0.75, 0.8), lengths=even) == []
    assert symptoms([], report={}) == []
