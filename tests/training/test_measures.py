"""What a comparison shows beside the win rate: held-out figures, labels, confusion."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.models import Project, User
from inference.models import BaseModel, Version
from tests.training.test_pages import snapshot  # noqa: F401
from training import labelled, measures
from training.models import Evaluation, Snapshot

RIGHT = ["billing", "billing", "billing", "delivery", "delivery", "returns"]
OURS = ["billing", "billing", "delivery", "delivery", "delivery", "Who knows?"]
THEIRS = ["billing", "returns", "returns", "delivery", "Who knows?", "returns"]
BEFORE = {
    "reward_accuracy": 0.5,
    "reward_accuracy_low": 0.5,
    "reward_accuracy_high": 0.5,
    "margin": 0.0,
    "margin_low": 0.0,
    "margin_high": 0.0,
    "perplexity": 20.25,
}
AFTER = {
    "reward_accuracy": 0.812,
    "reward_accuracy_low": 0.7,
    "reward_accuracy_high": 0.9,
    "margin": 0.4321,
    "margin_low": 0.2,
    "margin_high": 0.6,
    "kl": 0.0456,
    "kl_low": 0.03,
    "kl_high": 0.07,
    "perplexity": 21.75,
}


def labelled_comparison(snapshot: Snapshot, base: BaseModel, champion: Version) -> Evaluation:  # noqa: F811
    """Return a finished comparison whose held-out answers are labels."""
    challenger = Version.objects.create(
        project=snapshot.project,
        number=7,
        base=base,
        parent=champion,
        method="dpo",
        digest="7" * 64,
        path="adapters/none",
        snapshot_digest=snapshot.digest,
        metrics={"before": BEFORE, "after": AFTER, "pairs": 40},
        proof={"passed": True, "max_difference": 0.0, "tolerance": 1e-4},
    )
    share = {"value": 0.7, "low": 0.55, "high": 0.82, "n": 6}
    return Evaluation.objects.create(
        project=snapshot.project,
        challenger=challenger,
        champion=champion,
        snapshot=snapshot,
        rule="training.rules:concise",
        state=Evaluation.State.DONE,
        compared=6,
        result={
            "win_rate": share,
            "length_controlled": share,
            "fragility": {"prompts": 2, "of": 6},
            "mean_tokens": {"challenger": 10.0, "champion": 20.0},
            "prompts": 6,
            "preference": {"challenger": AFTER, "champion": None},
            "labelled": {
                "answers": 6,
                "challenger": labelled.scores(RIGHT, OURS),
                "champion": labelled.scores(RIGHT, THEIRS),
            },
        },
    )


def plain(html: str) -> str:
    """Return what a page says, a space between elements."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_it_shows_each_figure_with_what_it_means(
    snapshot: Snapshot,  # noqa: F811
    base: BaseModel,
    base_version: Version,
    lead: User,
    project: Project,
    login: Callable[[User], Client],
    api: Callable[..., APIClient],
) -> None:
    made = labelled_comparison(snapshot, base, base_version)
    client = login(lead)
    page = plain(client.get(reverse("evaluation", args=[project.slug, made.pk])).content.decode())
    for one in (*measures.HELDOUT, *measures.LABELLED, measures.BLEU):
        assert f"{one.label} {one.meaning}" in page
    assert "50.0 % 81.2 % 70.0 % to 90.0 % –" in page
    assert "– 0.046 0.030 to 0.070 –" in page
    assert "20.2 21.8 – –" in page, "perplexity before and after training"
    assert "At equal length it wins 70 %" in page
    # By hand: ours 4 of 6 right, theirs 3 of 6.
    assert "66.7 % 50.0 %" in page
    assert "billing 2 right 1 0 0 delivery 0 2 right 0 0 returns 0 0 0 right 1" in page
    assert "billing 1.00 0.67 0.80 3" in page, "precision, recall, F1 and how often it was right"
    passport = plain(
        client.get(reverse("version", args=[project.slug, made.challenger_id])).content.decode()
    )
    assert "Perplexity on general text 20.2 → 21.8" in passport
    assert "KL from the base 0.046 nats a token" in passport
    assert "accuracy 67 %, F1 0.53" in passport
    answer: dict[str, Any] = api(lead).get(f"/api/evaluations/{made.pk}/").json()
    found = answer["result"]["labelled"]["challenger"]["classification"]
    assert found["confusion"] == [[2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert api(lead).get(f"/api/versions/{made.challenger_id}/").json()["metrics"]["after"] == AFTER


def test_a_matrix_is_shaded_by_the_share_of_its_row(
    snapshot: Snapshot,  # noqa: F811
    base: BaseModel,
    base_version: Version,
) -> None:
    made = labelled_comparison(snapshot, base, base_version)
    ours, theirs = measures.confusions(made, made.result)
    assert [one.name for one in (ours, theirs)] == ["v7", "base"]
    assert [label for label, _ in ours.rows] == ["billing", "delivery", "returns"]
    # 2 of 3 is more than 3/5 and shaded 4; 1 of 3 more than 1/5 and shaded 2.
    assert [cell.heat for cell in ours.rows[0][1]] == [4, 2, 0, 0]
    assert [cell.right for cell in ours.rows[1][1]] == [False, True, False, False]
    assert measures.confusions(made, {"labelled": {}}) == []
