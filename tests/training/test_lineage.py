"""From a judgement to what serves, and back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from accounts.models import Project, User
from feedback.models import Campaign, Judgement
from inference.models import Alias, Version
from tests.training.test_snapshots import all_tied, judge_all, strict, take_snapshot
from training import lineage
from training.drawing import columns_of, draw
from training.lineage import Edge, Graph, Node
from training.models import Run, Snapshot, SnapshotSource

Login = Callable[[User], Client]


def trained(
    snapshot: Snapshot, start: Version, number: int, alias: str | None = None
) -> tuple[Run, Version]:
    """Return a run that succeeded and the version it gave, behind an alias if one is named."""
    version = Version.objects.create(
        project=snapshot.project,
        number=number,
        base=start.base,
        parent=start,
        method="dpo",
        digest=f"{number:064d}",
        path=f"adapters/{number}",
        snapshot_digest=snapshot.digest,
    )
    run = Run.objects.create(
        project=snapshot.project,
        snapshot=snapshot,
        start_version=start,
        method="dpo",
        arguments={"beta": 0.2},
        seed=7,
        state=Run.State.SUCCEEDED,
        version=version,
    )
    if alias:
        Alias.objects.update_or_create(
            project=snapshot.project, name=alias, defaults={"version": version}
        )
    return run, version


@pytest.fixture
def snapshot(
    make_campaign: Callable[..., Campaign],
    project: Project,
    annotator: User,
    second_annotator: User,
) -> Snapshot:
    campaign = make_campaign(items=6, judgements_per_item=2)
    judge_all(campaign, annotator, strict)
    judge_all(campaign, second_annotator, all_tied)
    return take_snapshot(project, campaign)


def names(graph: Graph) -> set[str]:
    return {node.name for node in graph.nodes}


def test_it_counts_whose_judgements_a_snapshot_used(snapshot: Snapshot, annotator: User) -> None:
    sources = SnapshotSource.objects.filter(snapshot=snapshot)
    assert [(row.annotator, row.judgements) for row in sources] == [(annotator, 6)], (
        "ties gave no row"
    )
    ids = [one for piece in lineage.judgement_ids(snapshot) for one in piece]
    assert sorted(ids) == sorted(
        str(one)
        for one in Judgement.objects.filter(annotator=annotator).values_list("client_id", flat=True)
    )


def test_it_walks_from_a_judgement_to_what_serves(
    snapshot: Snapshot, base_version: Version, annotator: User, second_annotator: User
) -> None:
    run, first = trained(snapshot, base_version, 1)
    other = Snapshot.objects.create(project=snapshot.project, state="failed")
    further, second = trained(other, first, 2, alias="production")
    used = Judgement.objects.filter(annotator=annotator).latest("id")
    found = names(lineage.lineage_of(used, snapshot.project))
    assert {f"snapshot:{snapshot.pk}", f"run:{run.pk}", f"version:{first.pk}"} < found
    assert {f"run:{further.pk}", f"version:{second.pk}", "alias:production"} < found, (
        "what was trained further learned it too"
    )
    tie = Judgement.objects.filter(annotator=second_annotator).latest("id")
    below = names(lineage.lineage_of(tie, snapshot.project))
    assert f"snapshot:{snapshot.pk}" not in below, "a tie gave no row"


def test_it_walks_from_a_version_to_who_judged(
    snapshot: Snapshot, base_version: Version, annotator: User
) -> None:
    run, version = trained(snapshot, base_version, 1)
    graph = lineage.lineage_of(version, snapshot.project)
    campaign = snapshot.campaigns.get()
    assert names(graph) == {
        f"campaign:{campaign.pk}",
        f"snapshot:{snapshot.pk}",
        f"run:{run.pk}",
        f"version:{version.pk}",
    }
    edge = next(edge for edge in graph.edges if edge.source == f"campaign:{campaign.pk}")
    assert edge.judgements == 6
    assert next(node.note for node in graph.nodes if node.kind == "campaign") == "1 annotator"


def test_a_lineage_takes_as_many_queries_for_ten_runs_as_for_two(
    snapshot: Snapshot, base_version: Version, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(1, 11):
        trained(snapshot, base_version, number)
    with django_assert_max_num_queries(20):
        assert len(lineage.lineage_of(snapshot, snapshot.project).nodes) == 22


def test_it_draws_what_was_made_right_of_what_it_was_made_of() -> None:
    nodes = [Node(kind="run", key=key, label=key) for key in "abc"]
    edges = [Edge(source="run:a", target="run:b"), Edge(source="run:b", target="run:c")]
    circle = [*edges, Edge(source="run:c", target="run:b")]
    assert columns_of(nodes, edges) == {"run:a": 0, "run:b": 1, "run:c": 2}
    drawing = draw(Graph(focus="run:b", nodes=nodes, edges=circle), lambda node: "/")
    assert drawing is not None, "a circle ends"
    assert [box.focus for box in drawing.boxes].count(True) == 1


def test_pages_and_rest_show_lineage_to_leads_only(
    snapshot: Snapshot,
    base_version: Version,
    project: Project,
    login: Login,
    api: Callable[..., APIClient],
    stranger: User,
    annotator: User,
    lead: User,
) -> None:
    run, version = trained(snapshot, base_version, 1)
    judgement = Judgement.objects.filter(annotator=annotator).latest("id")
    things = {
        "snapshot": snapshot.pk,
        "run": run.pk,
        "version": version.pk,
        "prompt": judgement.item.prompt_id,
        "judgement": judgement.client_id,
        "annotator": annotator.pk,
    }
    client = api(lead)
    for kind, key in things.items():
        address = reverse("lineage", args=[project.slug, kind, key])
        statuses = [login(user).get(address).status_code for user in (stranger, annotator)]
        assert statuses == [404, 403]
        page = login(lead).get(address)
        assert page.status_code == 200
        assert "<svg" in page.content.decode()
        answer = client.get(f"/api/{kind}s/{key}/lineage").json()
        assert answer["focus"] == f"{kind}:{key}"
        assert f"version:{version.pk}" in {node["name"] for node in answer["nodes"]}
        assert api(annotator).get(f"/api/{kind}s/{key}/lineage").status_code == 403
    for kind, key in {"judgement": "x", "snapshot": 999, "tea": 1, "annotator": lead.pk}.items():
        assert login(lead).get(f"/p/{project.slug}/lineage/{kind}/{key}/").status_code == 404


def test_what_was_built_before_the_counts_gets_them(
    snapshot: Snapshot, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = SnapshotSource.objects.order_by("annotator")
    before = list(rows.values_list("campaign", "annotator", "judgements"))
    assert before
    rows.delete()
    Judgement.objects.update(retracted_at="2026-01-01T00:00Z")  # a retraction that missed it
    away = snapshot.folder.with_name("away")
    snapshot.folder.rename(away)
    call_command("backfill_sources")
    said = capsys.readouterr()
    assert "Counted 0" in said.out
    assert f"Snapshot {snapshot.pk} cannot be read" in said.err
    away.rename(snapshot.folder)
    for counted in (1, 0):
        call_command("backfill_sources")
        assert f"Counted {counted} snapshots" in capsys.readouterr().out
    assert list(rows.values_list("campaign", "annotator", "judgements")) == before
    snapshot.refresh_from_db()
    assert snapshot.standing == "stale"
