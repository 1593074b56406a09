"""What is taken back leaves every later snapshot, and what was made of it is made again."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from accounts.errors import Conflict, ProductError
from accounts.models import AuditEntry, Project, User
from feedback.assignment import claim
from feedback.models import (
    Campaign,
    CompletionFeedback,
    Judgement,
    Prompt,
    Response,
    Slot,
)
from inference.models import Completion, Version
from tests.training.test_lineage import trained
from tests.training.test_snapshots import judge_all, rows, strict, take_snapshot
from training import lineage, storage
from training.models import Retraction, Run, Snapshot
from training.retraction import advance_rebuilds, affected_by, erase_files, rebuild, retract
from training.runs import start_run
from training.snapshots import build_snapshot

Login = Callable[[User], Client]


@pytest.fixture
def campaign(
    make_campaign: Callable[..., Campaign], annotator: User, second_annotator: User
) -> Campaign:
    campaign = make_campaign(items=6, judgements_per_item=2)
    judge_all(campaign, annotator, strict)
    judge_all(campaign, second_annotator, strict)
    return campaign


@pytest.fixture
def snapshot(campaign: Campaign) -> Snapshot:
    return take_snapshot(campaign.project, campaign)


def used(snapshot: Snapshot) -> set[str]:
    return {one for piece in lineage.judgement_ids(snapshot) for one in piece}


def standing(campaign: Campaign) -> Counter[int]:
    return Counter(campaign.judgements.standing().values_list("item_id", flat=True))


def test_the_next_snapshot_has_no_row_of_it(
    campaign: Campaign, snapshot: Snapshot, annotator: User, owner: User
) -> None:
    before = rows(snapshot)
    gone = {str(one.client_id) for one in Judgement.objects.filter(annotator=annotator)}
    assert gone <= used(snapshot)
    made = retract(project=campaign.project, subject=annotator, why="a spammer", by=owner)
    assert made.judgements == 6
    assert list(made.snapshots.all()) == [snapshot]
    again = take_snapshot(campaign.project, campaign)
    assert not gone & used(again)
    assert again.manifest["ledger"]["excluded"]["retracted"] == 6
    snapshot.refresh_from_db()
    assert snapshot.standing == "stale"
    assert rows(snapshot) == before, "a snapshot never changes"
    entry = AuditEntry.objects.get(action="retraction.make")
    assert (entry.user, entry.details["judgements"]) == (owner, 6)


def test_the_place_goes_to_somebody_else(
    campaign: Campaign, annotator: User, lead: User, owner: User
) -> None:
    one = Judgement.objects.filter(annotator=annotator).latest("id")
    retract(project=campaign.project, subject=one, why="a slip", by=owner)
    assert claim(campaign=campaign, annotator=annotator) is None, "not to the same person"
    judge_all(campaign, lead, strict)
    assert set(standing(campaign).values()) == {2}, "exactly N again"


def test_a_withdrawn_prompt_is_handed_out_no_more(
    make_campaign: Callable[..., Campaign], annotator: User, second_annotator: User, owner: User
) -> None:
    campaign = make_campaign(items=2, judgements_per_item=2, name="Fresh")
    judge_all(campaign, annotator, strict)
    task = claim(campaign=campaign, annotator=second_annotator)
    assert task is not None
    prompt = Prompt.objects.get(items=task.slot.item_id)
    retract(project=campaign.project, subject=prompt, why="out of bounds", by=owner)
    judge_all(campaign, second_annotator, strict)
    assert prompt.items.get().judgements.standing().count() == 0
    assert sum(standing(campaign).values()) == 2, "the other prompt is whole"
    assert not Slot.objects.filter(item__prompt=prompt).exclude(state="filled").exists()
    with pytest.raises(Conflict, match="done before"):
        retract(project=campaign.project, subject=prompt, why="again", by=owner)


def test_everything_made_of_it_is_listed(
    campaign: Campaign, snapshot: Snapshot, base_version: Version, annotator: User
) -> None:
    untouched = take_snapshot(campaign.project, campaign)
    Snapshot.objects.filter(pk=untouched.pk).update(project=base_version.project)
    run, first = trained(snapshot, base_version, 1)
    other = Snapshot.objects.create(project=snapshot.project, state="failed")
    further, second = trained(other, first, 2, alias="production")
    one = Judgement.objects.filter(annotator=annotator).latest("id")
    found = affected_by(project=campaign.project, subject=one)
    assert snapshot in found.snapshots
    assert set(found.runs) == {run, further}
    assert list(found.versions) == [first, second]
    assert [alias.name for alias in found.aliases] == ["production"]


def test_it_makes_all_of_it_again_once(
    campaign: Campaign, snapshot: Snapshot, base_version: Version, annotator: User, owner: User
) -> None:
    run, first = trained(snapshot, base_version, 1)
    further, _ = trained(snapshot, first, 2)
    made = retract(project=campaign.project, subject=annotator, why="a spammer", by=owner)
    with pytest.raises(ProductError, match="retracted"):
        start_run(
            snapshot=Snapshot.objects.get(pk=snapshot.pk),
            start_version=base_version,
            method="dpo",
            arguments={},
            by=owner,
        )
    for _click in range(2):
        rebuild(retraction=made, by=owner)
    again = Snapshot.objects.get(replaces=snapshot)
    assert Snapshot.objects.count() == 2
    assert advance_rebuilds() == 0, "not before the snapshot is there"
    build_snapshot(snapshot_id=again.pk)
    assert [advance_rebuilds(), advance_rebuilds()] == [1, 0], "the second waits for the first"
    repeated = Run.objects.get(replaces=run)
    assert (repeated.snapshot, repeated.start_version) == (again, base_version)
    assert (repeated.seed, repeated.arguments["beta"]) == (run.seed, 0.2)
    successor = Version.objects.create(
        project=campaign.project, number=9, base=base_version.base, digest="9" * 64, path="x"
    )
    Run.objects.filter(pk=repeated.pk).update(state="succeeded", version=successor)
    assert [advance_rebuilds(), advance_rebuilds()] == [1, 0]
    assert Run.objects.get(replaces=further).start_version == successor
    made.refresh_from_db()
    assert (made.rebuild_state, made.rebuild_note) == ("done", "")


def test_a_retraction_during_a_build_makes_the_snapshot_stale(
    campaign: Campaign, annotator: User, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = storage.publish

    def late(*arguments: object) -> object:
        retract(project=campaign.project, subject=annotator, why="too late", by=owner)
        return publish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "publish", late)
    assert take_snapshot(campaign.project, campaign).standing == "stale"


def test_erasure_removes_texts_and_keeps_counts(
    campaign: Campaign,
    snapshot: Snapshot,
    base_version: Version,
    annotator: User,
    owner: User,
    django_capture_on_commit_callbacks: Callable[..., object],
) -> None:
    prompt = Prompt.objects.filter(items__campaign=campaign).earliest("id")
    completion = Completion.objects.create(
        project=campaign.project,
        version=base_version,
        requested_model="base",
        source="chat",
        messages=prompt.messages,
        text="A secret.",
    )
    CompletionFeedback.objects.create(completion=completion, comment="It knows my name.")
    run, _ = trained(snapshot, base_version, 1)
    run.directory.mkdir(parents=True)
    (run.directory / "probe.safetensors").write_bytes(b"tokens")
    folder, manifest = snapshot.folder, snapshot.manifest
    Judgement.objects.filter(item__prompt=prompt).exists()
    with django_capture_on_commit_callbacks(execute=True):
        retract(project=campaign.project, subject=prompt, why="a person", by=owner, erase=True)
    snapshot.refresh_from_db()
    assert (snapshot.state, snapshot.manifest) == ("erased", manifest)
    assert not folder.exists()
    assert not (run.directory / "probe.safetensors").exists()
    prompt.refresh_from_db()
    completion.refresh_from_db()
    assert (prompt.messages, completion.messages, completion.text) == ([], [], "")
    assert set(Response.objects.filter(item__prompt=prompt).values_list("text", flat=True)) == {""}
    assert CompletionFeedback.objects.get().comment == ""
    assert campaign.judgements.count() == 12, "the counts stay"
    again = take_snapshot(campaign.project, campaign)
    assert again.manifest["ledger"]["excluded"]["retracted"] == 2
    assert erase_files() == 0


def test_only_erasure_may_take_a_text_away(campaign: Campaign, annotator: User) -> None:
    one = Judgement.objects.filter(annotator=annotator).latest("id")
    mine = Judgement.objects.filter(pk=one.pk)

    def change(**values: object) -> None:
        with transaction.atomic():
            mine.update(**values)

    with pytest.raises(IntegrityError, match="only be erased"):
        change(comment="words in their mouth")
    with pytest.raises(IntegrityError, match="only be erased"):
        change(comment="other words", erased_at=timezone.now())
    change(comment="", erased_at=timezone.now(), retracted_at=timezone.now())
    with pytest.raises(IntegrityError, match="stands"):
        change(erased_at=None)
    with pytest.raises(IntegrityError, match="stands"):
        change(retracted_at=None)


def test_pages_and_rest_are_for_admins(
    campaign: Campaign,
    snapshot: Snapshot,
    project: Project,
    login: Login,
    api: Callable[..., APIClient],
    stranger: User,
    lead: User,
    owner: User,
    annotator: User,
    second_annotator: User,
) -> None:
    address = reverse("retract", args=[project.slug, "annotator", annotator.pk])
    statuses = [login(user).get(address).status_code for user in (stranger, annotator, lead)]
    assert statuses == [404, 403, 403]
    page = login(owner).get(address).content.decode()
    assert f"Snapshot {snapshot.pk}" in page
    assert login(owner).post(address, {"why": " "}).status_code == 400
    done = login(owner).post(address, {"why": "a spammer", "campaign": campaign.pk})
    made = Retraction.objects.get()
    assert done.headers["Location"] == reverse("retraction", args=[project.slug, made.pk])
    assert login(owner).post(address, {"why": "twice"}).status_code == 409
    shown = login(lead).get(done.headers["Location"]).content.decode()
    assert "a spammer" in shown
    assert "Rebuild" not in shown
    assert "Rebuild" in login(owner).get(done.headers["Location"]).content.decode()
    assert "a spammer" in login(lead).get(f"/p/{project.slug}/retractions/").content.decode()
    assert login(lead).get(f"/p/{project.slug}/snapshots/{snapshot.pk}/").status_code == 200
    body = {"kind": "annotator", "key": str(second_annotator.pk), "why": "left"}
    assert api(lead).post("/api/retractions/", body).status_code == 403
    preview = api(owner).get("/api/retractions/preview", {"kind": "annotator", "key": body["key"]})
    assert preview.json()["judgements"] == 6
    answer = api(owner).post("/api/retractions/", body | {"erase": True})
    assert answer.status_code == 201, answer.content
    assert api(owner).post(f"/api/retractions/{answer.json()['id']}/rebuild").status_code == 200
    assert len(api(lead).get("/api/retractions/").json()["results"]) == 2
    missing = {"kind": "judgement", "key": str(uuid.uuid4()), "why": "x"}
    refused = api(owner).post("/api/retractions/", missing)
    assert refused.status_code == 404
    assert "named by its client_id" in refused.json()["message"]
    said = api(owner).get("/api/judgements/", {"limit": 1}).json()["results"][0]
    assert User.objects.get(pk=said["annotator_id"]).username == said["annotator"]


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(st.sampled_from(["judgement", "annotator", "prompt"]), st.integers(0, 99)),
        max_size=4,
    )
)
def test_whatever_is_taken_back_the_ledger_balances(
    make_campaign: Callable[..., Campaign],
    project: Project,
    annotator: User,
    second_annotator: User,
    owner: User,
    takings: list[tuple[str, int]],
) -> None:
    savepoint = transaction.savepoint()
    campaign = make_campaign(items=5, responses=3, judgements_per_item=2, name=uuid.uuid4().hex)
    for person in (annotator, second_annotator):
        judge_all(campaign, person, strict)
    for kind, number in takings:
        subjects = {
            "judgement": list(campaign.judgements.order_by("id")),
            "annotator": [annotator, second_annotator],
            "prompt": list(Prompt.objects.filter(items__campaign=campaign).order_by("id")),
        }[kind]
        try:
            retract(project=project, subject=subjects[number % len(subjects)], why="x", by=owner)
        except Conflict:
            continue
    gone = {str(row.client_id) for row in campaign.judgements.exclude(retracted_at=None)}
    if len(gone) < 10:
        again = take_snapshot(project, campaign)
        ledger = again.manifest["ledger"]
        assert ledger["judgements"] == 10 == ledger["exported"] + sum(ledger["excluded"].values())
        assert not gone & used(again)
        assert again.standing == "ready"
    assert max(standing(campaign).values(), default=0) <= 2
    transaction.savepoint_rollback(savepoint)
