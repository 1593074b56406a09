"""Pages of versions, aliases and the chat; promotion and chat with a real engine behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from django.test import AsyncClient, Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries

from accounts.models import Project, User
from inference import services
from inference.models import Alias, AliasMove, BaseModel, Completion, Version
from tests.inference.engine import tiny
from tests.inference.engine.conftest import KEY, Engine, start_engine, stop_engine
from tests.inference.test_aliases import make_adapter, point

Login = Callable[[User], Client]


def url(name: str, project: Project, *args: Any) -> str:
    return reverse(name, args=[project.slug, *args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model(tmp_path_factory.mktemp("pages") / "tiny")


@pytest.fixture(scope="module")
def running_engine(folder: Path) -> Iterator[Engine]:
    engine = start_engine(folder)
    yield engine
    stop_engine(engine)


@pytest.fixture
def base(folder: Path, db: None) -> BaseModel:
    """Return the base that the engine serves."""
    return BaseModel.objects.create(
        name="tiny",
        source="made for this test",
        path=str(folder),
        digest="b" * 64,
        licence="Apache-2.0",
        size_bytes=123_456,
        parameters=7_000_000,
    )


@pytest.fixture
def engine(running_engine: Engine, settings: Any) -> Engine:
    settings.ENGINE_URLS = [running_engine.url]
    settings.ENGINE_API_KEY = KEY
    return running_engine


@pytest.fixture
def register(
    project: Project, base: BaseModel, base_version: Version, owner: User, tmp_path: Path
) -> Callable[[Path | int], Version]:
    """Return a function that registers an adapter folder, or one made from a number."""

    def register_one(source: Path | int) -> Version:
        folder = source
        if isinstance(folder, int):
            folder = make_adapter(tmp_path / f"adapter-{source}", folder)
        return services.register_version(
            project=project,
            base=base,
            parent=base_version,
            method="dpo",
            adapter_folder=folder,
            snapshot_digest="5" * 64,
            metrics={
                "before": {"reward_accuracy": 0.5, "margin": 0.0},
                "after": {"reward_accuracy": 0.875, "margin": 1.25},
                "pairs": 16,
            },
            proof={"passed": True, "max_difference": 0.0, "tolerance": 1e-4},
            by=owner,
        )

    return register_one


# Versions


def test_it_opens_versions_to_leads_and_moves_to_admins(
    register: Callable[[int], Version],
    project: Project,
    login: Login,
    stranger: User,
    annotator: User,
    lead: User,
    owner: User,
) -> None:
    version, users = register(1), (stranger, annotator, lead, owner)
    for address in (
        url("versions", project),
        url("alias_ledger", project),
        url("version", project, version.pk),
    ):
        assert [login(user).get(address).status_code for user in users] == [404, 403, 200, 200]
        assert Client().get(address).status_code == 302
    for address in (url("version_promote", project, version.pk), url("alias_roll_back", project)):
        assert [login(user).post(address).status_code for user in users[:3]] == [404, 403, 403]
        assert login(owner).get(address).status_code == 405


def test_it_lists_versions_in_few_queries(
    register: Callable[[int], Version],
    project: Project,
    lead: User,
    login: Login,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    for seed in range(5):
        register(seed)
    client = login(lead)
    # session, user, membership, count, aliases with two for production, projects, page with its
    # aliases, evaluations and runs, ledger
    with django_assert_num_queries(13):
        client.get(url("versions", project))


def test_it_reads_like_a_passport(
    register: Callable[[int], Version], project: Project, owner: User, login: Login
) -> None:
    version = register(1)
    page = login(owner).get(url("version", project, version.pk)).content.decode()
    for fact in (
        "An adapter made by DPO on tiny.",
        "licence Apache-2.0",
        "0.50 → <strong>0.88</strong>",
        "reloaded and reproduced",
        version.digest,
        version.served_name,
        f"/api/versions/{version.pk}/files/adapter_model.safetensors",
        "Put v1 into production",
    ):
        assert fact in page
    assert url("version", project, version.parent_id) in page


def test_it_says_when_the_files_are_gone(
    register: Callable[[int], Version], project: Project, lead: User, login: Login
) -> None:
    version = register(1)
    for path in version.folder.iterdir():
        path.unlink()
    version.folder.rmdir()
    page = login(lead).get(url("version", project, version.pk)).content.decode()
    assert "its folder is gone from the store" in page
    assert "Put v1 into production" not in page  # a lead may look, not move


def test_it_hides_versions_of_other_projects(
    register: Callable[[int], Version], stranger: User, login: Login
) -> None:
    version, elsewhere = register(1), Project.objects.visible_to(stranger).get()
    client = login(stranger)
    assert client.get(url("version", elsewhere, version.pk)).status_code == 404
    assert client.post(url("version_promote", elsewhere, version.pk)).status_code == 404


def test_it_promotes_and_rolls_back(
    register: Callable[[Path], Version],
    engine: Engine,
    folder: Path,
    tmp_path: Path,
    project: Project,
    base_version: Version,
    owner: User,
    login: Login,
) -> None:
    version = register(tiny.build_adapter(folder, tmp_path / "real", seed=3))
    client = login(owner)
    form = {"alias": "production", "why": "It is shorter."}
    answer = client.post(url("version_promote", project, version.pk), form, follow=True)
    assert "production is v1 now; the move took" in answer.content.decode()
    assert Alias.objects.get().version == version
    with engine.client() as http:
        served = {row["id"] for row in http.get("/v1/models").json()["data"]}
    assert version.served_name in served
    page = client.get(url("versions", project)).content.decode()
    assert "Roll production back to base" in page
    form = {"alias": "production", "to": base_version.pk, "why": "Too short."}
    answer = client.post(url("alias_roll_back", project), form, follow=True)
    assert "production is base again" in answer.content.decode()
    assert Alias.objects.get().version == base_version
    ledger = client.get(url("alias_ledger", project)).content.decode()
    assert ledger.index("Too short.") < ledger.index("It is shorter.")


def test_it_keeps_the_reason_when_no_engine_answers(
    register: Callable[[int], Version],
    project: Project,
    base_version: Version,
    owner: User,
    login: Login,
) -> None:
    version = register(1)
    form = {"alias": "production", "why": "It is shorter."}
    answer = login(owner).post(url("version_promote", project, version.pk), form)
    page = answer.content.decode()
    assert answer.status_code == 503
    assert "does not answer" in page
    assert 'value="It is shorter."' in page
    assert Alias.objects.get().version == base_version


@pytest.mark.parametrize("form", [{"alias": "latest"}, {"why": "x" * 501}])
def test_it_refuses_a_wrong_promotion(
    form: dict[str, str],
    register: Callable[[int], Version],
    project: Project,
    owner: User,
    login: Login,
) -> None:
    version = register(1)
    answer = login(owner).post(url("version_promote", project, version.pk), form)
    assert answer.status_code == 400
    assert AliasMove.objects.count() == 1


def test_it_rolls_back_only_to_what_the_page_named(
    register: Callable[[int], Version],
    project: Project,
    base_version: Version,
    owner: User,
    login: Login,
) -> None:
    first, second = register(1), register(2)
    point(project, first)
    stale = {"alias": "production", "to": base_version.pk, "why": "Too short."}
    point(project, second)  # somebody else promotes while the page is open
    answer = login(owner).post(url("alias_roll_back", project), stale)
    assert answer.status_code == 409
    assert "was moved by somebody else meanwhile" in answer.content.decode()
    assert 'value="Too short."' in answer.content.decode()
    assert Alias.objects.get().version == second


def test_it_has_nothing_to_roll_back_at_first(
    base_version: Version, project: Project, owner: User, login: Login
) -> None:
    client = login(owner)
    assert "Roll back" not in client.get(url("versions", project)).content.decode()
    answer = client.post(url("alias_roll_back", project), {"alias": "production"})
    assert answer.status_code == 409
    assert "nothing to roll production back to" in answer.content.decode()


# Chat


def test_it_opens_the_chat_to_every_member(
    base_version: Version,
    project: Project,
    login: Login,
    stranger: User,
    annotator: User,
    lead: User,
    owner: User,
) -> None:
    address, users = url("chat", project), (stranger, annotator, lead, owner)
    assert [login(user).get(address).status_code for user in users] == [404, 200, 200, 200]
    assert Client().get(address).status_code == 302
    page = login(annotator).get(address, {"model": "base"}).content.decode()
    assert '<option value="production">production (base)</option>' in page
    assert '<option value="base" selected>' in page


def test_it_offers_nothing_where_there_is_no_model(
    project: Project, lead: User, login: Login
) -> None:
    assert "Nobody to talk to yet" in login(lead).get(url("chat", project)).content.decode()


@pytest.mark.django_db(transaction=True)
def test_it_chats_without_javascript(
    engine: Engine, base_version: Version, project: Project, annotator: User, login: Login
) -> None:
    client, address = login(annotator), url("chat", project)
    answer = client.post(address, {"model": "production", "text": "Hello", "history": "[]"})
    assert answer.status_code == 200
    completion = Completion.objects.get()
    assert (completion.source, completion.created_by) == (Completion.Source.CHAT, annotator)
    assert completion.version == base_version
    assert url("completion", project, completion.pk) in answer.content.decode()
    history = answer.context["history"]
    assert [turn["role"] for turn in json.loads(history)] == ["user", "assistant"]
    client.post(address, {"model": "base", "text": "And now?", "history": history})
    assert len(Completion.objects.latest("created_at").messages) == 3


@pytest.mark.parametrize(
    ("form", "status", "sentence"),
    [
        ({"text": "  "}, 400, "Write something first."),
        ({"history": "nonsense"}, 400, "The conversation cannot be read."),
        ({"history": '[{"role": "robot"}]'}, 400, "must have a “role”"),
        ({"model": "v99"}, 404, "There is no model “v99” here."),
        ({"model": ""}, 400, "Choose a model to talk to."),
    ],
)
def test_it_refuses_a_message_and_keeps_it(
    form: dict[str, str],
    status: int,
    sentence: str,
    base_version: Version,
    project: Project,
    annotator: User,
    login: Login,
) -> None:
    full = {"model": "base", "text": "Keep me", "history": "[]"} | form
    answer = login(annotator).post(url("chat", project), full)
    assert answer.status_code == status
    assert sentence in answer.content.decode()
    assert "text" in form or "Keep me" in answer.content.decode()
    assert not Completion.objects.exists()


async def _ask(user: User, project: Project, body: Any) -> tuple[int, str]:
    """Post to the streaming address as the page's script does; return the status and the text."""
    client = AsyncClient()
    await client.aforce_login(user, backend="django.contrib.auth.backends.ModelBackend")
    answer = await client.post(
        url("chat_answer", project), json.dumps(body), content_type="application/json"
    )
    text = (
        "".join([chunk.decode() async for chunk in answer])
        if answer.streaming
        else answer.content.decode()
    )
    # The thread that served this has a connection of its own; the database must go after the run.
    await sync_to_async(connections.close_all)()
    return answer.status_code, text


@pytest.mark.django_db(transaction=True)
async def test_it_streams_an_answer_and_records_it(
    engine: Engine, base_version: Version, project: Project, annotator: User
) -> None:
    messages = [{"role": "user", "content": "Hello there"}]
    body = {"model": "production", "messages": messages, "temperature": 0.5, "max_tokens": 8}
    status, text = await _ask(annotator, project, body)
    assert status == 200
    *events, done = [line[len("data: ") :] for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    completion = await Completion.objects.select_related("version", "created_by").aget()
    assert {chunk["id"] for chunk in chunks} == {str(completion.pk)}
    assert {chunk["model"] for chunk in chunks} == {"base"}
    pieces = [choice["delta"].get("content") or "" for c in chunks for choice in c["choices"]]
    assert "".join(pieces).replace("\x00", "") == completion.text
    assert completion.source == Completion.Source.CHAT
    assert completion.created_by == annotator
    assert completion.sampling == {"temperature": 0.5, "max_tokens": 8}
    assert chunks[-1]["usage"]["completion_tokens"] == completion.completion_tokens


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ([], 400, "must be a JSON object"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, 400, "Choose a model"),
        ({"model": "base", "messages": []}, 400, "with at least one"),
        ({"model": "v7", "messages": [{"role": "user", "content": "Hi"}]}, 404, "no model “v7”"),
    ],
)
async def test_it_refuses_a_streamed_question(
    body: Any, status: int, sentence: str, base_version: Version, project: Project, annotator: User
) -> None:
    answered, text = await _ask(annotator, project, body)
    assert answered == status
    assert sentence in json.loads(text)["error"]["message"]


@pytest.mark.django_db(transaction=True)
async def test_it_streams_nothing_to_strangers(
    base_version: Version, project: Project, stranger: User
) -> None:
    body = {"model": "base", "messages": [{"role": "user", "content": "Hi"}]}
    assert (await _ask(stranger, project, body))[0] == 404


def test_it_wants_the_page_s_own_token(
    base_version: Version, project: Project, annotator: User
) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(annotator, backend="django.contrib.auth.backends.ModelBackend")
    answer = client.post(url("chat_answer", project), "{}", content_type="application/json")
    assert answer.status_code == 403
