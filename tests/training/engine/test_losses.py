"""The losses against numbers derived by hand.

Throughout: s(x) = 1 / (1 + exp(-x)), log s(0) = -0.693147, log s(1) = -0.313262,
log s(-1) = -1.313262, log s(2) = -0.126928, log s(-2) = -2.126928.
"""

from __future__ import annotations

import math

import pytest
import torch

from training.engine import losses


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers)


def test_sigmoid() -> None:
    assert losses.sigmoid(values(0.0, 1.0)).tolist() == pytest.approx([0.693147, 0.313262])
    # 0.9 * 0.313262 + 0.1 * 1.313262
    assert losses.sigmoid(values(1.0), label_smoothing=0.1).item() == pytest.approx(0.413262)


def test_robust() -> None:
    # (0.9 * 0.313262 - 0.1 * 1.313262) / 0.8 = 0.150610 / 0.8
    found = losses.robust(values(1.0), label_smoothing=0.1)
    assert found.item() == pytest.approx(0.188262, abs=1e-5)


def test_hinge() -> None:
    assert losses.hinge(values(-1.0, 0.25, 3.0)).tolist() == [2.0, 0.75, 0.0]


def test_ipo() -> None:
    # the aim is 1 / (2 * 0.25) = 2
    assert losses.ipo(values(2.0, 0.5), beta=0.25).tolist() == [0.0, 2.25]


def test_rao_kupper() -> None:
    # nu = e: log nu = 1. Win at d = 2: -log s(1). Tie at d = 0:
    # -log(e^2 - 1) - 2 log s(-1) = -1.854587 + 2.626523
    found = losses.rao_kupper(values(2.0, 0.0), torch.tensor([False, True]), threshold=math.e)
    assert found.tolist() == pytest.approx([0.313262, 0.771937], abs=1e-5)


def test_rao_kupper_probabilities_add_up_to_one() -> None:
    margins = values(-1.3, 0.0, 2.2)
    no, yes = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    win, loss = (losses.rao_kupper(sign * margins, no, threshold=3.0) for sign in (1, -1))
    tie = losses.rao_kupper(margins, yes, threshold=3.0)
    total = torch.exp(-win) + torch.exp(-loss) + torch.exp(-tie)
    torch.testing.assert_close(total, torch.ones(3))


def test_orpo() -> None:
    # p = 0.5 has odds 1, p = 0.2 has odds 0.25: the log odds ratio is log 4, s(log 4) = 0.8.
    found = losses.orpo(values(math.log(0.5)), values(math.log(0.2)), weight=0.1)
    assert found.item() == pytest.approx(0.693147 + 0.1 * 0.223144, abs=1e-5)


def test_orpo_stays_a_number_for_a_certain_answer() -> None:
    chosen = torch.zeros(1, requires_grad=True)
    loss = losses.orpo(chosen, values(-1.0), weight=0.1)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss).all()
    assert torch.isfinite(chosen.grad).all()  # type: ignore[arg-type]


def test_simpo() -> None:
    # 2 * (-0.5 + 1.5) - 1 = 1
    found = losses.simpo(values(-0.5), values(-1.5), beta=2.0, gamma=1.0)
    assert found.item() == pytest.approx(0.313262)


def test_bradley_terry() -> None:
    assert losses.bradley_terry(values(1.5), values(0.5)).item() == pytest.approx(0.313262)
    with_margin = losses.bradley_terry(values(1.5), values(0.5), margins=values(3.0))
    assert with_margin.item() == pytest.approx(2.126928)
    centred = losses.bradley_terry(values(1.5), values(0.5), centring=0.01)
    assert centred.item() == pytest.approx(0.313262 + 0.01 * 4)


def test_kto() -> None:
    # z0 = 2, beta = 0.5: a good response at 4 gains s(1) = 0.731059, a bad one loses as much.
    found = losses.kto(
        values(4.0, 4.0), torch.tensor([True, False]), beta=0.5, baseline=torch.tensor(2.0)
    )
    assert found.tolist() == pytest.approx([0.268941, 0.731059], abs=1e-5)
