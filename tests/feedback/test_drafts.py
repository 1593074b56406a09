"""Drafts: what fits and what does not, who decides, and that nothing counts before."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.errors import Conflict, ProductError
from accounts.models import AuditEntry, Project, User
from feedback import drafting, leaderboards
from feedback.assignment import claim
from feedback.drafts import (
    approve,
    place,
    reject,
    request_drafts,
    restart,
    resume_stalled_drafts,
    write_drafts,
)
from feedback.drafts_undo import last_undoable, undo
from feedback.live import send_to_campaign
from feedback.models import Campaign, Item, Prompt, Response, Slot
from feedback.models_drafts import Draft, DraftRequest
from feedback.services import add_prompts, create_campaign, generate_responses, give_feedback
from inference.models import Completion, Version
from tests.feedback.scripted import Scripted, scripted
from tests.training.test_snapshots import judge_all, strict, take_snapshot
from training.retraction import retract

Order = Callable[..., DraftRequest]


def as_json(text: str) -> str:
    return json.dumps([{"role": "user", "content": text}])


@pytest.fixture
def engine(settings: Any) -> Iterator[Scripted]:
    """Return an engine that gives each request another prompt, all unlike each other."""
    numbers = iter(range(10_000))
    lock = threading.Lock()

    def reply(body: dict[str, Any]) -> str:
        with lock:
            number = next(numbers)
        return as_json(" ".join(f"word{number}x{place}" for place in range(6)))

    with scripted(reply) as running:
        settings.ENGINE_URLS = [running.url]
        yield running


@pytest.fixture
def order(project: Project, lead: User, base_version: Version, engine: Scripted) -> Order:
    """Return a maker of drafts that are written at once."""

    def make(kind: str = "prompt", wanted: int = 3, *, write: bool = True, **more: Any) -> Any:
        if not Prompt.objects.exists():
            add_prompts(project=project, prompts=["How do I reset my password?", "Where is it?"])
        request = request_drafts(
            project=project,
            by=lead,
            kind=DraftRequest.Kind(kind),
            source={"version": base_version.pk, "max_tokens": 64},
            prompts=Prompt.objects.filter(project=project),
            wanted=wanted,
            **more,
        )
        if write:
            write_drafts(request_id=request.pk)
            request.refresh_from_db()
            assert request.state == "ready", request.reason
        return request

    return make


def counted(project: Project) -> list[int]:
    return [
        Prompt.objects.filter(project=project).count(),
        Item.objects.filter(campaign__project=project).count(),
        Response.objects.filter(item__campaign__project=project).count(),
        Slot.objects.filter(campaign__project=project).count(),
    ]


def test_it_shows_examples_and_sets_aside_what_does_not_fit_with_the_reason(
    order: Order, engine: Scripted, project: Project
) -> None:
    there = "Please write a poem about the green hills of home in spring"
    add_prompts(project=project, prompts=[there, "Why?"])
    texts = iter(
        [
            as_json("Which trees keep their leaves?"),
            f"```json\n{as_json('How far away is the moon?')}\n```",
            "Sure! Here is a prompt: why?",
            " \n",
            json.dumps({"role": "user", "content": "no list"}),
            json.dumps([{"role": "user", "content": "Hi", "name": "extra"}]),
            json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]),
            as_json("Why?"),
            as_json(there.replace("spring", "autumn")),
            400,
        ]
    )
    lock = threading.Lock()

    def reply(body: dict[str, Any]) -> str | int:
        with lock:
            return next(texts)

    engine.reply = reply
    request = order(wanted=10, shots=2, guidance="Ask about nature.")
    for body in engine.asked:
        system, *turns = body["messages"]
        assert system["content"].endswith("Ask about nature.")
        shown = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        assert sorted(shown) == sorted([as_json(there), as_json("Why?")])
    states = request.drafts.values_list("state", flat=True)
    assert sorted(states) == ["pending"] * 2 + ["unfit"] * 8
    fit = {draft.last_turn for draft in request.drafts.pending()}
    assert fit == {"Which trees keep their leaves?", "How far away is the moon?"}
    reasons = " | ".join(request.drafts.filter(state="unfit").values_list("reason", flat=True))
    for part in (
        "Not the JSON of a conversation",
        "wrote nothing",
        "not a list of messages",
        "Message 1 is not of a role and a content alone",
        "must be the user's",
        "The same as prompt",
        "Nearly prompt",
        "refused: too long",
    ):
        assert reasons.count(part) == 1, (part, reasons)
    raw = {draft.raw for draft in request.drafts.exclude(completion=None)}
    assert "Sure! Here is a prompt: why?" in raw, "what was written is kept letter by letter"
    assert not request.drafts.exclude(completion=None).exclude(completion__source="draft").exists()


def test_nothing_counts_until_somebody_approves_it(
    order: Order,
    make_campaign: Callable[..., Campaign],
    project: Project,
    annotator: User,
    lead: User,
) -> None:
    campaign = make_campaign(items=4, judgements_per_item=1)
    Response.objects.filter(item__campaign=campaign, position=0).update(source="a")
    Response.objects.filter(item__campaign=campaign, position__gt=0).update(source="b")
    judge_all(campaign, annotator, strict)
    before, counts = take_snapshot(project, campaign), counted(project)
    board = leaderboards.of_project(project)
    order(wanted=5)
    answers = order("response", wanted=4)
    assert Draft.objects.pending().count() == 9
    assert counted(project) == counts
    assert take_snapshot(project, campaign).digest == before.digest
    assert leaderboards.of_project(project) == board
    assert campaign.items.count() == 4
    draft = answers.drafts.pending()[0]
    assert draft.completion is not None
    with pytest.raises(Conflict, match="approved or rejected on the drafts page"):
        give_feedback(completion=draft.completion, user=lead, thumb=1)
    with pytest.raises(Conflict, match="after somebody approved it"):
        send_to_campaign(campaign=campaign, completions=[draft.completion], by=lead)
    with pytest.raises(Conflict, match="approved answers"):
        place(campaign=campaign, drafts=[draft], by=lead)
    reject(draft=draft, by=lead, why="Wrong.")
    assert counted(project) == counts
    with pytest.raises(IntegrityError, match="only_an_approved_draft_counts"), transaction.atomic():
        Draft.objects.filter(pk=draft.pk).update(made_prompt=Prompt.objects.latest("id"))
    with pytest.raises(IntegrityError, match="a_person_decides_a_draft"), transaction.atomic():
        Draft.objects.pending().update(state="approved")


def test_an_approved_prompt_says_who_wrote_and_who_approved_it(order: Order, lead: User) -> None:
    one, two, three = order(wanted=3, tags=["drafted"]).drafts.pending()
    made = approve(draft=one, by=lead).made_prompt
    assert made is not None
    assert (made.messages, made.tags, made.draft.edited) == (one.proposed, ["drafted"], False)
    instead = [{"role": "user", "content": "Edited by hand"}]
    edited = approve(draft=two, by=lead, instead=instead)
    assert edited.made_prompt is not None
    assert (edited.edited, edited.made_prompt.messages) == (True, instead)
    assert edited.proposed == two.proposed != edited.approved_as
    with pytest.raises(Conflict, match=f"Prompt {edited.made_prompt.pk} asks the same"):
        approve(draft=three, by=lead, instead=instead)
    with pytest.raises(ProductError, match="must be the user's"):
        approve(draft=three, by=lead, instead=[{"role": "assistant", "content": "no"}])
    three.refresh_from_db()
    assert three.state == "pending"
    line = AuditEntry.objects.filter(action="draft.approve").latest("id")
    assert (line.user, line.details["draft"], line.details["edited"]) == (lead, two.pk, True)


def test_an_approved_answer_is_judged_beside_those_that_versions_write(
    order: Order, engine: Scripted, base_version: Version, project: Project, lead: User
) -> None:
    source = {"version": base_version.pk, "max_tokens": 8}
    prompts = add_prompts(project=project, prompts=["One?", "Two?", "Three?"])
    engine.reply = lambda body: f"Answer to {body['messages'][-1]['content']}"
    drafts = {draft.prompt: draft for draft in order("response").drafts.pending()}
    approve(draft=drafts[prompts[0]], by=lead, instead="Better.")
    campaign = create_campaign(
        project=project,
        by=lead,
        name="With drafts",
        kind=Campaign.Kind.RANKING,
        prompts=prompts[:2],
        sources=[source],
        responses_per_item=2,
        approved_drafts=True,
    )
    made = Response.objects.get(item__campaign=campaign)
    assert (made.text, made.source, made.completion) == ("Better.", "draft of base, edited", None)
    assert (made.draft, made.item.prompt) == (drafts[prompts[0]], prompts[0])
    third = approve(draft=drafts[prompts[2]], by=lead, campaign=campaign)
    assert third.response is not None
    assert (third.response.item.campaign, third.response.source) == (campaign, "draft of base")
    campaign.refresh_from_db()
    assert (campaign.to_generate, campaign.state) == (3, "generating")
    with pytest.raises(Conflict, match="has this prompt and its responses"):
        approve(draft=drafts[prompts[1]], by=lead, campaign=campaign)
    assert drafts[prompts[1]].response is None
    other = create_campaign(
        project=project,
        by=lead,
        name="Later",
        kind=Campaign.Kind.RANKING,
        prompts=prompts[2:],
        sources=[source],
    )
    approve(draft=drafts[prompts[1]], by=lead)
    assert place(campaign=other, drafts=[drafts[prompts[1]]], by=lead).items == 1
    with pytest.raises(Conflict, match="in no campaign yet"):
        place(campaign=other, drafts=[drafts[prompts[1]]], by=lead)
    with pytest.raises(ProductError, match="has a drafted answer already"):
        order("response")


@pytest.mark.django_db(transaction=True)
def test_two_workers_and_a_crash_make_no_doubles(
    order: Order, engine: Scripted, lead: User
) -> None:
    request = order(wanted=24, write=False)
    good = engine.reply
    engine.reply = lambda body: good(body) if len(engine.asked) < 9 else 500
    write_drafts(request_id=request.pk)
    request.refresh_from_db()
    assert request.state == "failed"
    there = request.drafts.count()
    assert 0 < there < 24
    engine.reply = good
    engine.asked.clear()
    restart(request=request, by=lead)

    def work(_: int) -> None:
        try:
            write_drafts(request_id=request.pk)
        finally:
            connection.close()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, range(3)))
    request.refresh_from_db()
    assert (request.state, request.drafts.count()) == ("ready", 24)
    assert sorted(request.drafts.values_list("number", flat=True)) == list(range(24))
    assert Completion.objects.filter(source="draft").count() == 24
    assert len(engine.asked) >= 24 - there, "only the missing ones are asked for again"
    write_drafts(request_id=request.pk)
    assert request.drafts.count() == 24
    again = order(wanted=2, client_id=request.client_id, write=False)
    assert again == request
    DraftRequest.objects.update(state="generating", touched_at=timezone.now() - timedelta(hours=1))
    assert (resume_stalled_drafts(), resume_stalled_drafts()) == (1, 0)


@pytest.mark.django_db(transaction=True)
def test_the_first_of_two_leads_decides(order: Order, owner: User, lead: User) -> None:
    drafts = list(order(wanted=8).drafts.pending())
    start = threading.Barrier(2)
    told: list[str] = []

    def decide(how: Callable[..., Draft], by: User) -> list[int]:
        won = []
        try:
            for draft in drafts:
                start.wait()
                try:
                    how(draft=draft, by=by)
                    won.append(draft.pk)
                except Conflict as error:
                    told.append(error.message)
        finally:
            connection.close()
        return won

    with ThreadPoolExecutor(2) as threads:
        approved, rejected = threads.map(decide, (approve, reject), (lead, owner))
    assert sorted([*approved, *rejected]) == [draft.pk for draft in drafts]
    assert len(told) == 8
    assert all("this draft already; yours changed nothing" in sentence for sentence in told)
    for draft in Draft.objects.all():
        assert draft.state == ("approved" if draft.pk in approved else "rejected")
        assert (draft.made_prompt is not None) == (draft.pk in approved)
    assert AuditEntry.objects.filter(action__in=["draft.approve", "draft.reject"]).count() == 8


def test_erasing_a_prompt_erases_what_was_drafted_of_it(
    order: Order, engine: Scripted, project: Project, owner: User
) -> None:
    [prompt] = add_prompts(project=project, prompts=["My name is Mara Quist. Who am I?"])
    order(wanted=2)
    engine.reply = lambda body: "You are Mara Quist."
    approve(draft=order("response", wanted=1).drafts.get(), by=owner)
    retract(project=project, subject=prompt, why="a person", by=owner, erase=True)
    left = json.dumps(
        [
            list(Draft.objects.values_list("proposed", "approved_as")),
            list(Completion.objects.values_list("messages", "text")),
        ]
    )
    assert "Quist" not in left
    assert Draft.objects.pending().count() == 2, "what learned its shape only stays to be decided"


def test_whoever_decided_takes_it_back_within_the_window(
    order: Order, owner: User, lead: User, project: Project
) -> None:
    first, second = order(wanted=2).drafts.pending()
    before = counted(project)
    reject(draft=second, by=lead, why="Dull.")
    approve(draft=first, by=lead, instead=[{"role": "user", "content": "By hand?"}])
    assert counted(project) != before
    assert last_undoable(project=project, by=lead) == first
    with pytest.raises(Conflict, match="You did not decide"):
        undo(draft=first, by=owner)
    for draft in (first, second):
        assert last_undoable(project=project, by=lead) == draft
        again = undo(draft=draft, by=lead)
        assert (again.state, again.reason, again.edited) == ("pending", "", False)
    assert counted(project) == before
    done = list(AuditEntry.objects.filter(action="draft.undo").order_by("id"))
    assert [entry.details["was"] for entry in done] == ["approved", "rejected"]
    with pytest.raises(Conflict):
        undo(draft=first, by=lead)  # a double click
    approve(draft=first, by=owner)
    Draft.objects.filter(pk=first.pk).update(decided_at=timezone.now() - timedelta(minutes=11))
    assert last_undoable(project=project, by=owner) is None
    with pytest.raises(Conflict, match="10 minutes"):
        undo(draft=first, by=owner)


def test_what_was_approved_into_a_campaign_leaves_it_unless_somebody_met_it(
    order: Order,
    engine: Scripted,
    base_version: Version,
    project: Project,
    lead: User,
    annotator: User,
) -> None:
    asked = add_prompts(project=project, prompts=["One?", "Two?"])
    engine.reply = lambda body: f"Answer to {body['messages'][-1]['content']}"
    one, two = order("response").drafts.pending()
    campaign = create_campaign(
        project=project,
        by=lead,
        name="Answers",
        kind=Campaign.Kind.THUMBS,
        prompts=add_prompts(project=project, prompts=["Three?"]),
        sources=[{"version": base_version.pk, "max_tokens": 8}],
        responses_per_item=1,
        judgements_per_item=1,
    )
    generate_responses(campaign_id=campaign.pk)
    before = counted(project)
    approve(draft=one, by=lead, campaign=campaign)
    undo(draft=one, by=lead)
    campaign.refresh_from_db()
    assert counted(project) == before
    assert (campaign.generated, campaign.to_generate) == (1, 1)
    approve(draft=two, by=lead)
    place(campaign=campaign, drafts=[two], by=lead)
    with pytest.raises(Conflict, match="makes use of it"):
        undo(draft=two, by=lead)  # another act put it there
    again = approve(draft=Draft.objects.get(pk=one.pk), by=lead, campaign=campaign)
    while claim(campaign=campaign, annotator=annotator) is not None:
        if Slot.objects.filter(item__responses__draft=again, state="leased").exists():
            break
        Slot.objects.filter(state="leased").update(state="filled", lease_expires_at=None)
    with pytest.raises(Conflict, match="makes use of it"):
        undo(draft=again, by=lead)
    again.refresh_from_db()
    assert (again.state, len(asked)) == ("approved", 2)


def test_leads_order_and_decide_by_rest_and_nobody_else(
    order: Order,
    base_version: Version,
    lead: User,
    annotator: User,
    stranger: User,
    api: Callable[..., APIClient],
    campaign: Campaign,
) -> None:
    client = api(lead)
    body = {"kind": "prompt", "version": base_version.pk, "wanted": 3, "tags": ["new"]}
    assert api(annotator).post("/api/draft-requests/", body, format="json").status_code == 403
    answer = client.post("/api/draft-requests/", body, format="json")
    assert (answer.status_code, answer.json()["state"]) == (201, "generating")
    number = answer.json()["id"]
    write_drafts(request_id=number)
    assert client.get(f"/api/draft-requests/{number}/").json()["written"] == 3
    page = client.get(f"/api/drafts/?state=pending&request={number}&limit=2").json()
    assert len(page["results"]) == 2
    rest = client.get(page["next"]).json()["results"]
    first, second, third = [*page["results"], *rest]
    assert first["proposed"][0]["role"] == "user"
    assert client.get("/api/drafts/?state=nonsense").status_code == 400
    path = f"/api/drafts/{first['id']}/"
    assert api(annotator).get(path).status_code == 403
    elsewhere = api(stranger, of=Project.objects.get(name="Elsewhere"))
    assert elsewhere.get(path).status_code == 404
    assert elsewhere.get("/api/drafts/").json()["results"] == []
    assert client.post(f"{path}approve", {"text": "no"}, format="json").status_code == 400
    done = client.post(f"{path}approve", {}, format="json").json()
    assert (done["state"], done["decided_by"], done["edited"]) == ("approved", "lena", False)
    listed = client.get("/api/prompts/").json()["results"]
    assert {row["id"]: row["draft"] for row in listed}[done["made_prompt"]] == first["id"]
    late = client.post(f"{path}reject", {"why": "no"}, format="json")
    assert late.status_code == 409
    assert late.json()["message"] == "lena approved this draft already; yours changed nothing."
    messages = [{"role": "user", "content": "By hand"}]
    edited = client.post(
        f"/api/drafts/{second['id']}/approve", {"messages": messages}, format="json"
    ).json()
    assert (edited["edited"], edited["approved_as"]) == (True, messages)
    gone = client.post(f"/api/drafts/{third['id']}/reject", {"why": "Dull."}, format="json").json()
    assert (gone["state"], gone["reason"], gone["made_prompt"]) == ("rejected", "Dull.", None)
    back = f"/api/drafts/{third['id']}/undo"
    assert api(annotator).post(back).status_code == 403
    assert elsewhere.post(back).status_code == 404
    assert client.post(back).json()["state"] == "pending"
    assert client.post(back).status_code == 409
    answers = order("response", wanted=1).drafts.get()
    approve(draft=answers, by=lead)
    path = f"/api/campaigns/{campaign.pk}/drafts"
    assert client.post(path, {"drafts": [first["id"]]}, format="json").status_code == 409
    assert client.post(path, {"drafts": [10**9]}, format="json").status_code == 400


def test_nearness_is_rouge_l() -> None:
    # "the cat sat" in both: 2 * 3 / (4 + 5).
    one, two = "the cat sat down", "the black cat sat there"
    found = drafting.nearest(drafting.words(one), {"two": drafting.words(two)}, least=0.5)
    assert found is not None
    assert (found.name, round(found.share, 4)) == ("two", 0.6667)
    assert drafting.nearest(drafting.words(one), {"two": drafting.words(two)}, least=0.7) is None
    assert drafting.nearest([], {"nothing": []}, least=0.7) is None
