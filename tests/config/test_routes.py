"""Every address asked with every method by those who have no business there.

The walk goes through the URL resolver, so a new route is asked, too. One whose arguments it cannot
name fails the test: put an object of its kind into ``thing_of``. Who may do what without being a
lead stands in the lists below, and nowhere else.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings as site
from django.db import transaction
from django.test import Client
from django.urls import URLPattern, get_resolver
from rest_framework.test import APIClient
from rest_framework.views import APIView

from accounts.models import Event, Membership, Project, Role, Scope, User, Webhook, WebhookMessage
from accounts.services import create_project, create_token, set_member
from feedback import calibration, code_books, pauses
from feedback.assignment import claim
from feedback.models import Campaign, CompletionFeedback, FileImport, Judgement
from feedback.models_drafts import Draft, DraftRequest
from inference.models import BaseModel, Completion
from inference.services import adopt_base
from tests.conftest import make_user
from tests.training.test_lineage import trained
from tests.training.test_snapshots import judge_all, strict, take_snapshot
from training.models import Evaluation, Retraction, Round, Run, Schedule, ScheduledRound

# Of pages; whatever else a function does not look at is as good as DELETE. REST views are asked
# with what they have, the others being refused by one line of the framework.
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
# It stands in every text of the project, so whoever is told anything of it is told this.
SECRET = "Zebra"

# Everybody's.
PUBLIC = {"health", "api/schema/", "api/docs/", "^api/", "login/", "logout/"}
# Between projects: each sees their own, or what is the same in all of them.
OWN = {"", "api/me", "api/me/progress", "api/methods/"}
# What a token may change that has no scope to manage.
JUDGING = {
    "api/campaigns/<int:pk>/next",
    "api/campaigns/<int:pk>/undo",
    "api/code-books/<int:pk>/confirm",
    "api/judgements/",
    "api/slots/<int:pk>/renew",
    "api/slots/<int:pk>/skip",
}
# What a member of the lowest role may do.
ANNOTATORS = (
    OWN
    | JUDGING
    | {
        "api/aliases/",
        "api/aliases/moves/",
        "api/campaigns/",  # GET
        "api/campaigns/<int:pk>/",
        "api/versions/",
        "p/<slug:slug>/",
        "p/<slug:slug>/campaigns/<int:pk>/task/",
        "p/<slug:slug>/campaigns/<int:pk>/task/confirm/",
        "p/<slug:slug>/campaigns/<int:pk>/task/renew/",
        "p/<slug:slug>/campaigns/<int:pk>/task/skip/",
        "p/<slug:slug>/campaigns/<int:pk>/task/undo/",
        "p/<slug:slug>/chat/",
        "p/<slug:slug>/chat/answer",
        "p/<slug:slug>/queue/",
        "p/<slug:slug>/queue/progress",
        "p/<slug:slug>/settings/tokens/",
        "p/<slug:slug>/settings/tokens/revoke",
    }
)
CHATTING = {"api/completions/<uuid:pk>/feedback", "v1/chat/completions", "v1/models"}
# A post that names a second thing in its form, and is a 404 without.
NEEDS_A_FORM = {
    "p/<slug:slug>/campaigns/<int:pk>/task/confirm/",
    "p/<slug:slug>/campaigns/<int:pk>/pause",
    "p/<slug:slug>/campaigns/<int:pk>/lift",
    "p/<slug:slug>/drafts/place",
    "p/<slug:slug>/feedback/send",
    "p/<slug:slug>/settings/tokens/revoke",
}
# Secrets of the project are near, so reading needs the scope to manage, too.
MANAGED = "api/webhooks/"


@dataclass(frozen=True)
class Route:
    """One pattern of the resolver with its path to a real object of the project."""

    pattern: str
    path: str
    methods: tuple[str, ...] = METHODS

    @property
    def names_an_object(self) -> bool:
        return "<" in self.pattern

    @property
    def is_page(self) -> bool:
        return not self.pattern.startswith(("api/", "v1/"))


@dataclass(frozen=True)
class World:
    """A project with one of everything, and its people."""

    project: Project
    owner: User
    annotator: User
    things: dict[str, Any]

    def routes(self) -> list[Route]:
        """Return every route with its arguments filled in, or fail the test naming the argument."""
        return [
            Route(pattern, "/" + self._path(pattern), methods) for pattern, methods in patterns()
        ]

    def _path(self, pattern: str) -> str:
        def value(found: re.Match[str]) -> str:
            before = re.sub(r"<[^>]*>", "", pattern[: found.start()])
            kind = before.rstrip("/").rpartition("/")[2]
            name = f"{kind}/{found[1]}"
            assert name in self.things, (
                f"The walk cannot ask {pattern!r}: give {name!r} an object in thing_of()."
            )
            return str(self.things[name])

        return re.sub(r"<(?:\w+:)?(\w+)>", value, pattern)


def patterns() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each route of the site as it is written, with the methods to ask it with."""

    def walk(found: list[Any], before: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        for one in found:
            route = before + str(one.pattern)
            if isinstance(one, URLPattern):
                view = getattr(one.callback, "cls", None)
                has = [name for name in APIView.http_method_names if hasattr(view, name)]
                yield route, tuple(name.upper() for name in has) if view else METHODS
            else:
                yield from walk(one.url_patterns, route)

    return walk(get_resolver().url_patterns, "")


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """Leave a thousand refusals out of the log."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def world(base: BaseModel, make_campaign: Callable[..., Campaign], settings: Any) -> World:
    settings.EVALUATION_RULES = ["training.rules:concise"]
    owner, annotator, other = (make_user(name) for name in ("zoe", "zack", "zita"))
    project = create_project(name=SECRET, by=owner)
    for user in (annotator, other):
        set_member(project=project, user=user, role=Role.ANNOTATOR)
    campaign = make_campaign(of=project, name=SECRET, text=f"{SECRET} {{position}} {{number}}.")
    judge_all(campaign, other, strict)
    code_books.publish(campaign=campaign, text=SECRET, changed="", to_confirm=False, by=owner)
    held = claim(campaign=campaign, annotator=annotator)
    assert held is not None
    return World(project, owner, annotator, thing_of(project, campaign, base, owner, other, held))


def thing_of(
    project: Project, campaign: Campaign, base: BaseModel, owner: User, other: User, held: Any
) -> dict[str, Any]:
    """Return what stands in an address, by the segment before it and the argument's name."""
    item = campaign.items.first()
    assert item is not None
    prompt = item.prompt
    start = adopt_base(project=project, base=base, by=owner)
    snapshot = take_snapshot(project, campaign)
    run, version = trained(snapshot, start, 1)
    folder = Path(site.ARTIFACTS_DIR) / version.path
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(SECRET)
    completion = Completion.objects.create(
        project=project,
        version=version,
        requested_model="v1",
        source=Completion.Source.CANDIDATE,
        messages=prompt.messages,
        text=SECRET,
        created_by=owner,
    )
    CompletionFeedback.objects.create(
        completion=completion, client_id=uuid.uuid4(), user=owner, thumb=1, comment=SECRET
    )
    order = DraftRequest.objects.create(
        project=project,
        kind=DraftRequest.Kind.PROMPT,
        version=start,
        sampling={},
        prompts=[prompt.pk],
        wanted=1,
        state=DraftRequest.State.FAILED,
        reason=SECRET,
        by=owner,
    )
    draft = Draft.objects.create(
        request=order, number=0, proposed=[{"role": "user", "content": SECRET}]
    )
    session = calibration.start(
        campaign=campaign, name=SECRET, items=[item], members=[owner, other], by=owner
    )
    calibration.note(session=session, text=SECRET, by=owner)
    paused = pauses.pause(campaign=campaign, annotator=other, why=SECRET, by=owner)
    webhook = Webhook.objects.create(
        project=project, url=f"https://{SECRET}.example/", events=[Event.ALIAS_MOVED], secret="x"
    )
    message = WebhookMessage.objects.create(
        webhook=webhook, event=Event.ALIAS_MOVED, data={"why": SECRET}
    )
    judgement = Judgement.objects.filter(campaign=campaign).latest("id")
    retraction = Retraction.objects.create(
        project=project, kind="judgement", judgement=judgement, why=SECRET, judgements=1, by=owner
    )
    schedule = Schedule.objects.create(project=project, name=SECRET, rule="training.rules:concise")
    rounds = Round.objects.create(
        project=project, snapshot=snapshot, start_version=start, name=SECRET
    )
    evaluation = Evaluation.objects.create(
        project=project,
        challenger=version,
        champion=start,
        snapshot=snapshot,
        rule="training.rules:concise",
        state=Evaluation.State.FAILED,
        reason=SECRET,
    )
    proposal = ScheduledRound.objects.create(
        schedule=schedule,
        due="now",
        state=ScheduledRound.State.PROPOSED,
        run=run,
        evaluation=evaluation,
        reason=SECRET,
    )
    queued = Run.objects.create(
        project=project,
        snapshot=snapshot,
        start_version=start,
        method="dpo",
        round=rounds,
        state=Run.State.PAUSED,
    )
    imported = FileImport.objects.create(
        project=project, upload="0" * 64, filename=SECRET, name=SECRET, by=owner
    )
    member = Membership.objects.get(project=project, user=other)
    return {
        "p/slug": project.slug,
        "annotators/pk": other.pk,
        "calibrations/pk": session.pk,
        "calibrations/session": session.pk,
        "campaigns/pk": campaign.pk,
        "code-books/pk": campaign.code_books.latest("number").pk,
        "completions/pk": completion.pk,
        "draft-requests/pk": order.pk,
        "drafts/pk": draft.pk,
        "evaluations/pk": evaluation.pk,
        "export/name": "csv",
        "files/name": "manifest.json",
        "import/pk": imported.pk,
        "imports/pk": imported.pk,
        "items/item": item.pk,
        "items/pk": item.pk,
        "judgements/key": judgement.client_id,
        "judgements/pk": judgement.client_id,
        "lineage/kind": "prompt",
        "lineage/key": prompt.pk,
        "members/pk": member.pk,
        "members/user": other.pk,
        "messages/key": message.key,
        "pauses/pk": paused.pk,
        "prompts/pk": prompt.pk,
        "proposals/pk": proposal.pk,
        "requests/pk": order.pk,
        "retract/kind": "prompt",
        "retract/key": prompt.pk,
        "retractions/pk": retraction.pk,
        "rounds/pk": rounds.pk,
        "runs/pk": queued.pk,
        "schedules/pk": schedule.pk,
        "slots/pk": held.slot.pk,
        "snapshots/pk": snapshot.pk,
        "versions/pk": version.pk,
        "webhooks/pk": webhook.pk,
    }


@dataclass(frozen=True)
class Answer:
    """What came back; ``text`` is empty for a stream, which begins only after every check."""

    status: int
    text: str
    location: str


def ask(client: Client, method: str, path: str) -> Answer:
    """Send a request of the method; an empty JSON object where it has a body."""
    body = {} if method in ("GET", "HEAD", "OPTIONS") else {"data": "{}"}
    answer = client.generic(method, path, content_type="application/json", **body)
    text = "" if answer.streaming else answer.content.decode()
    return Answer(answer.status_code, text, answer.get("Location", ""))


def stored() -> dict[str, int]:
    """Return how many rows each table has; what a service changes is audited, which is a row."""
    return {
        model._meta.label: model._base_manager.count()
        for model in apps.get_models()
        if model._meta.label not in ("sessions.Session",)
    }


def signed_in(user: User) -> APIClient:
    client = APIClient(raise_request_exception=False)
    client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return client


def with_token(project: Project, user: User, *scopes: Scope) -> APIClient:
    _, text = create_token(project=project, user=user, name="walk", scopes=list(scopes or Scope))
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
    return client


def complaint(method: str, route: Route, answer: Answer) -> str:
    return f"{method} /{route.pattern}: {answer.status} {answer.text[:120]!r}"


def test_nobody_is_told_anything(world: World) -> None:
    before, wrong = stored(), []
    for route in world.routes():
        if route.pattern in PUBLIC:
            continue
        for method in route.methods:
            answer = ask(Client(raise_request_exception=False), method, route.path)
            if route.is_page:
                fine = answer.status == 405 or (
                    answer.status == 302 and answer.location.startswith("/login/")
                )
            else:
                fine = answer.status in (401, 405)
            if not fine or SECRET in answer.text:
                wrong.append(complaint(method, route, answer))
    assert not wrong, "\n".join(wrong)
    assert stored() == before


@pytest.mark.parametrize("means", ["session", "token"])
def test_somebody_of_another_project_meets_nothing(
    world: World, stranger: User, means: str
) -> None:
    where = Project.objects.get(memberships__user=stranger)
    client = signed_in(stranger) if means == "session" else with_token(where, stranger)
    before, wrong = stored(), []
    for route in world.routes():
        if route.pattern in PUBLIC:
            continue
        for method in route.methods:
            # Naming the project in a collection's address opens nothing, either.
            path = route.path if route.names_an_object else f"{route.path}?project=zebra"
            answer = ask(client, method, path)
            if route.is_page and means == "token":
                fine = answer.status in (302, 405) and not answer.text
            elif route.names_an_object:
                fine = answer.status in (404, 405)
            else:
                fine = answer.status < 500
            if not fine or SECRET in answer.text:
                wrong.append(complaint(method, route, answer))
    assert not wrong, "\n".join(wrong)
    assert stored() == before


@pytest.fixture
def elsewhere(
    stranger: User, base: BaseModel, make_campaign: Callable[..., Campaign]
) -> dict[str, Any]:
    """Return what the stranger's own project has, to mix with what it has not."""
    project = Project.objects.get(memberships__user=stranger)
    version = adopt_base(project=project, base=base, by=stranger)
    campaign = make_campaign(of=project, name="Own")
    judge_all(campaign, stranger, strict)
    item = campaign.items.first()
    assert item is not None
    return {
        "slug": project.slug,
        "version": version.pk,
        "campaign": campaign.pk,
        "item": item.pk,
        "prompt": item.prompt_id,
        "snapshot": take_snapshot(project, campaign).pk,
    }


def test_an_id_of_one_project_opens_nothing_in_the_address_of_another(
    world: World, stranger: User, elsewhere: dict[str, Any]
) -> None:
    client, before, wrong = signed_in(stranger), stored(), []
    for route in world.routes():
        if route.pattern.count("<") < 2 or not route.pattern.startswith("p/"):
            continue
        for method in route.methods:
            path = route.path.replace("/p/zebra/", f"/p/{elsewhere['slug']}/")
            answer = ask(client, method, path)
            if answer.status not in (404, 405) or SECRET in answer.text:
                wrong.append(complaint(method, route, answer))
    assert not wrong, "\n".join(wrong)
    assert stored() == before


def test_an_id_of_one_project_opens_nothing_in_the_body_of_another(
    world: World, stranger: User, elsewhere: dict[str, Any]
) -> None:
    own, theirs = elsewhere, world.things
    campaign, item = f"/api/campaigns/{own['campaign']}", f"/api/items/{own['item']}"
    made = {"name": "x", "kind": "ranking", "prompts": [own["prompt"]]}
    run = {"snapshot": own["snapshot"], "start_version": own["version"]}
    against = {"challenger": own["version"], "champion": own["version"], **run}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/api/snapshots/", {"campaigns": [theirs["campaigns/pk"]]}),
        ("/api/campaigns/", made | {"sources": [{"version": theirs["versions/pk"]}]}),
        (
            "/api/campaigns/",
            made | {"sources": [{"version": own["version"]}], "prompts": [theirs["prompts/pk"]]},
        ),
        (f"{campaign}/completions", {"completions": [str(theirs["completions/pk"])]}),
        (f"{campaign}/drafts", {"drafts": [theirs["drafts/pk"]]}),
        (
            f"{campaign}/calibrations",
            {"name": "x", "items": [theirs["items/pk"]], "members": ["sven", "zack"]},
        ),
        (
            f"{campaign}/calibrations",
            {"name": "x", "items": [own["item"]], "members": ["sven", "zack"]},
        ),
        (f"{campaign}/pauses", {"annotator": "zack", "why": "x"}),
        (f"{item}/assign", {"annotators": ["zack", "zita"]}),
        ("/api/schedules/", {"name": "x", "campaigns": [theirs["campaigns/pk"]]}),
        ("/api/draft-requests/", {"kind": "prompt", "version": theirs["versions/pk"], "wanted": 1}),
        (
            "/api/draft-requests/",
            {
                "kind": "prompt",
                "version": own["version"],
                "wanted": 1,
                "prompts": [theirs["prompts/pk"]],
            },
        ),
        *(
            ("/api/retractions/", {"kind": kind, "key": str(theirs[f"{name}/pk"]), "why": "x"})
            for kind, name in (
                ("prompt", "prompts"),
                ("judgement", "judgements"),
                ("annotator", "annotators"),
            )
        ),
        *(
            (path, run | {mixed: theirs[f"{name}/pk"]})
            for path in ("/api/runs/", "/api/runs/preflight", "/api/rounds/")
            for mixed, name in (("snapshot", "snapshots"), ("start_version", "versions"))
        ),
        *(
            ("/api/evaluations/", against | {mixed: theirs[f"{name}/pk"]})
            for mixed, name in (
                ("snapshot", "snapshots"),
                ("champion", "versions"),
                ("challenger", "versions"),
                ("reward_version", "versions"),
            )
        ),
        (
            "/api/judgements/",
            {"slot": theirs["slots/pk"], "token": 1, "client_id": str(uuid.uuid4()), "thumb": 1},
        ),
    ]
    client, before = signed_in(stranger), stored()
    for path, body in asked:
        answer = client.post(path, body, format="json")
        assert answer.status_code in (400, 404), (path, body, answer.content)
        assert SECRET not in answer.content.decode()
    assert stored() == before


def test_an_annotator_does_what_annotators_may_and_nothing_else(world: World) -> None:
    client, routes = signed_in(world.annotator), world.routes()
    before, wrong = stored(), []
    assert {route.pattern for route in routes} >= ANNOTATORS, "a list names what is not there"
    for route in routes:
        if route.pattern in PUBLIC | ANNOTATORS | {"v1/models", "v1/chat/completions"}:
            continue
        for method in route.methods:
            answer = ask(client, method, route.path)
            # A completion that is not their own is not there: it tells which model wrote what.
            hidden = answer.status == 404 and "completions/<uuid" in route.pattern
            if answer.status not in (403, 405) and not hidden:
                wrong.append(complaint(method, route, answer))
    assert not wrong, "\n".join(wrong)
    assert stored() == before
    for route in routes:
        if route.pattern in ANNOTATORS:
            for method in route.methods:
                with transaction.atomic():
                    answer = ask(client, method, route.path)
                    transaction.set_rollback(True)
                assert answer.status < 500, complaint(method, route, answer)


@pytest.mark.parametrize("scope", Scope)
def test_a_token_does_what_its_scope_says_and_nothing_else(world: World, scope: Scope) -> None:
    client = with_token(world.project, world.owner, scope)
    may_change = {Scope.JUDGE: JUDGING, Scope.CHAT: CHATTING}.get(scope, set())
    before, wrong = stored(), []
    for route in world.routes():
        if route.is_page or route.pattern in PUBLIC:
            continue
        for method in route.methods:
            reads = method in ("GET", "HEAD")
            if scope == Scope.READ and reads and not route.pattern.startswith(MANAGED):
                continue
            if route.pattern in may_change or (scope == Scope.MANAGE and not reads):
                continue
            if scope == Scope.MANAGE and route.pattern.startswith(MANAGED):
                continue
            answer = ask(client, method, route.path)
            if answer.status not in (403, 405) or SECRET in answer.text:
                wrong.append(complaint(method, route, answer))
    assert not wrong, "\n".join(wrong)
    assert stored() == before


def test_the_walk_asks_for_what_is_there(world: World) -> None:
    """Every refusal above could be that of a wrong id: an admin is refused none of them."""
    client, wrong = signed_in(world.owner), []
    for route in world.routes():
        if route.pattern in NEEDS_A_FORM | PUBLIC or route.pattern.startswith("v1/"):
            continue
        answers = {}
        for method in ("GET", "POST", "PATCH", "DELETE"):
            with transaction.atomic():
                answers[method] = ask(client, method, route.path)
                transaction.set_rollback(True)
        if any(answer.status >= 500 for answer in answers.values()) or all(
            answer.status in (401, 403, 404, 405) for answer in answers.values()
        ):
            wrong.append(f"/{route.pattern}: { {m: a.status for m, a in answers.items()} }")
    assert not wrong, "\n".join(wrong)
