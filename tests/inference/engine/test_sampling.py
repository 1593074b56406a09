from __future__ import annotations

import numpy as np
import pytest
import torch

from inference.engine.sampling import LIKELIEST, Sampling, choose

# Shares 0.5, 0.3, 0.15, 0.05: at temperature 1 these logits give them back.
SHARES = torch.tensor([0.5, 0.3, 0.15, 0.05])


def frequencies(settings: Sampling, draws: int = 4000) -> list[float]:
    generator = settings.generator(0)
    logits = SHARES.log().expand(draws, -1)
    tokens = choose(logits, [settings] * draws, [generator] * draws)
    return (np.bincount(tokens, minlength=4) / draws).tolist()


def test_it_draws_in_proportion() -> None:
    assert frequencies(Sampling(1, seed=0)) == pytest.approx(SHARES.tolist(), abs=0.03)


def test_it_sharpens_by_temperature() -> None:
    # Temperature 0.5 squares the shares: 0.25, 0.09, 0.0225, 0.0025 over their sum 0.365.
    wanted = [0.685, 0.247, 0.062, 0.007]
    assert frequencies(Sampling(1, temperature=0.5, seed=0)) == pytest.approx(wanted, abs=0.03)


def test_it_keeps_the_smallest_set_that_reaches_top_p() -> None:
    # 0.5 is short of 0.7, so the second token is in: 0.5 and 0.3 over 0.8.
    wanted = [0.625, 0.375, 0, 0]
    assert frequencies(Sampling(1, top_p=0.7, seed=0)) == pytest.approx(wanted, abs=0.03)
    assert frequencies(Sampling(1, top_p=0.4, seed=0)) == [1, 0, 0, 0]


def test_it_sorts_a_flat_row_whole() -> None:
    width = 4 * LIKELIEST
    settings = Sampling(1, top_p=0.999, seed=0)
    generator = settings.generator(0)
    tokens = choose(torch.zeros(2000, width), [settings] * 2000, [generator] * 2000)
    assert len(set(tokens)) > LIKELIEST


def test_it_takes_the_likeliest_token_at_temperature_zero() -> None:
    assert frequencies(Sampling(1, temperature=0)) == [1, 0, 0, 0]


def test_a_rows_token_does_not_depend_on_its_company() -> None:
    torch.manual_seed(0)
    logits = torch.randn(12, 2000)
    settings = [
        Sampling(1, temperature=[0.0, 0.7, 1.0][row % 3], top_p=[1.0, 0.9][row % 2], seed=row)
        for row in range(12)
    ]
    together = choose(logits, settings, [s.generator(0) for s in settings])
    alone = [choose(logits[i : i + 1], [s], [s.generator(0)])[0] for i, s in enumerate(settings)]
    assert together == alone


def test_its_samples_have_streams_of_their_own() -> None:
    settings = Sampling(1, seed=7)
    assert settings.generator(0).random() == settings.generator(0).random()
    assert settings.generator(0).random() != settings.generator(1).random()
    assert Sampling(1).generator(0).random() != Sampling(1).generator(0).random()
