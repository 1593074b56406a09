"""How far annotators agree on Likert scales; the expected numbers are derived by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User
from feedback import agreement, calibration, quality
from feedback.assignment import Answer, claim, submit
from feedback.models import Campaign
from feedback.scales import Rated, as_verdicts, on_scale


def rated(annotator: str, *levels: int) -> Rated:
    """Return one annotator's levels of the responses 0, 1, 2 … on the scale “tone”."""
    return Rated(1, annotator, {number: {"tone": level} for number, level in enumerate(levels)})


def test_it_computes_ordinal_alpha_of_a_scale() -> None:
    # Coincidences: (1,1) twice, (2,3) and (3,2) once each; n_1 = 2, n_2 = n_3 = 1, n = 4.
    # Ordinal distances: d(1,2)² = (2/2 + 1/2)² = 9/4, d(2,3)² = 1, d(1,3)² = (1 + 1 + 1/2)² = 25/4.
    # D_o = 2 x 1 / 4 = 1/2; D_e = 2 (2 x 9/4 + 2 x 25/4 + 1) / (4 x 3) = 3.
    found = on_scale([rated("a", 1, 2), rated("b", 1, 3)], key="tone", label="Tone", levels=5)
    assert found.alpha == pytest.approx(1 - 0.5 / 3)
    assert found.responses == 2


def test_it_has_no_alpha_of_a_scale_without_overlap() -> None:
    apart = [rated("a", 1), Rated(2, "b", {7: {"tone": 5}})]
    assert on_scale(apart, key="tone", label="Tone", levels=5).alpha is None
    assert on_scale([], key="tone", label="Tone", levels=5).alpha is None


def test_a_calibration_session_says_how_far_raters_agree(
    make_campaign: Callable[..., Campaign], annotator: User, second_annotator: User, lead: User
) -> None:
    asks = {"ratings": [{"label": "Tone", "levels": 5}]}
    campaign = make_campaign(items=2, responses=2, kind="rating", asks=asks)
    session = calibration.start(
        campaign=campaign,
        name="First",
        items=list(campaign.items.all()),
        members=[annotator, second_annotator],
        by=lead,
    )
    for user, shift in ((annotator, 0), (second_annotator, 1)):
        for _ in range(2):  # those of the session come first
            task = claim(campaign=campaign, annotator=user)
            assert task is not None
            levels = {one.pk: {"tone": 1 + 3 * one.position + shift} for one in task.responses}
            submit(
                slot_id=task.slot.pk,
                token=task.slot.token,
                client_id=task.client_id,
                annotator=user,
                answer=Answer(ratings=levels),
            )
    found = calibration.result(session)
    assert found.alpha is not None
    assert 0 < found.alpha < 1
    assert [one.agreement for one in found.items] == [0.75, 0.75]
    assert found.pairs[0][2].value == 0.75


def test_levels_are_alike_by_their_distance() -> None:
    found = as_verdicts([rated("a", 1, 3), rated("b", 5, 4), rated("c", 1, 3)], {"tone": 5})
    between = agreement.agreement_between(found)
    # Opposite ends and one step of four: the mean of 0 and 3/4.
    assert between["a", "b"].value == pytest.approx(3 / 8)
    assert between["a", "c"].value == 1


def test_the_quality_page_says_how_far_raters_agree(
    make_campaign: Callable[..., Campaign],
    annotator: User,
    second_annotator: User,
    lead: User,
    login: Callable[[User], Client],
) -> None:
    campaign = make_campaign(
        kind="rating", responses=2, asks={"ratings": [{"label": "Tone", "levels": 5}]}
    )
    for user, shift in ((annotator, 0), (second_annotator, 1)):
        while (task := claim(campaign=campaign, annotator=user)) is not None:
            levels = {one.pk: {"tone": 1 + 3 * one.position + shift} for one in task.responses}
            submit(
                slot_id=task.slot.pk,
                token=task.slot.token,
                client_id=task.client_id,
                annotator=user,
                answer=Answer(ratings=levels, seconds=5),
            )
    report = quality.report(campaign)
    assert [(one.key, one.responses) for one in report.scales] == [("tone", 6)]
    assert report.scales[0].alpha is not None
    assert 0 < report.scales[0].alpha < 1
    assert [row.rest and row.rest.value for row in report.rows] == [0.75, 0.75]
    assert report.rows[0].weight == pytest.approx(report.rows[1].weight), "neither is outvoted"
    assert not any(row.flags for row in report.rows), "agreed levels are no known ones"
    assert len(report.disputed) == 3
    page = login(lead).get(reverse("campaign_quality", args=["support", campaign.pk]))
    assert f"{report.scales[0].alpha:.2f}" in page.content.decode()
    assert "Leftmost best" not in page.content.decode()
