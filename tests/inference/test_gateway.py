"""The gateway, asked by the stock openai client over real HTTP, with a real engine behind it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from accounts.models import Project, Role, Scope, User
from accounts.services import create_project, create_token, set_member
from inference import services
from inference.models import Alias, BaseModel, Completion, Version
from tests.conftest import make_user
from tests.inference.engine import tiny
from tests.inference.engine.conftest import KEY, Engine, start_engine, stop_engine

pytestmark = pytest.mark.django_db(transaction=True)
HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model(tmp_path_factory.mktemp("gateway") / "tiny")


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_adapter(folder, tmp_path_factory.mktemp("adapter") / "one", seed=1)


@pytest.fixture(scope="module")
def running_engine(folder: Path) -> Iterator[Engine]:
    engine = start_engine(folder)
    yield engine
    stop_engine(engine)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture
def engine(running_engine: Engine, artifacts: Path, settings: Any) -> Engine:
    settings.ARTIFACTS_DIR = artifacts  # an engine holds a name to its first path for good
    settings.ENGINE_URLS = [running_engine.url]
    settings.ENGINE_API_KEY = KEY
    return running_engine


@pytest.fixture
def site() -> Iterator[str]:
    """Serve the ASGI application in a thread of this process, on the test database."""
    from config.asgi import application

    server = uvicorn.Server(
        uvicorn.Config(application, port=0, log_level="warning", lifespan="off")
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def base_version(project: Project, folder: Path) -> Version:
    base = BaseModel.objects.create(
        name="tiny",
        source="made for this test",
        path=str(folder),
        digest="d" * 64,
        licence="Apache-2.0",
        size_bytes=1,
        parameters=1,
    )
    return services.adopt_base(project=project, base=base)


@pytest.fixture
def tuned(project: Project, base_version: Version, adapter: Path, owner: User) -> Version:
    return services.register_version(
        project=project,
        base=base_version.base,
        parent=base_version,
        method="dpo",
        adapter_folder=adapter,
        snapshot_digest="s" * 64,
        metrics={},
        proof={"passed": True},
        by=owner,
    )


@pytest.fixture
def program(project: Project) -> User:
    user = make_user("program")
    set_member(project=project, user=user, role=Role.ANNOTATOR)
    return user


def connect(site: str, project: Project, user: User, *scopes: Scope) -> openai.OpenAI:
    _, text = create_token(
        project=project, user=user, name="chat", scopes=list(scopes or [Scope.CHAT])
    )
    return openai.OpenAI(base_url=f"{site}/v1", api_key=text, max_retries=0, timeout=30)


def test_the_stock_client_lists_models_and_chats(
    engine: Engine, site: str, project: Project, tuned: Version, program: User
) -> None:
    client = connect(site, project, program)
    assert {model.id for model in client.models.list()} == {"production", "base", "v1"}
    answer = client.chat.completions.create(model="v1", messages=HELLO, max_tokens=5, seed=1)  # type: ignore[arg-type]
    assert answer.model == "v1"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    stored = Completion.objects.get(pk=answer.id)
    assert stored.text == answer.choices[0].message.content
    assert stored.version == tuned
    assert stored.sampling == {"max_tokens": 5, "seed": 1}
    assert stored.created_by == program


def test_a_stream_says_the_same_and_is_recorded(
    engine: Engine, site: str, project: Project, base_version: Version, program: User
) -> None:
    client = connect(site, project, program)
    ask: dict[str, Any] = {
        "model": "production",
        "messages": HELLO,
        "max_tokens": 12,
        "temperature": 0,
    }
    plain = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert len(chunks) > 3
    stored = Completion.objects.get(pk=chunks[0].id)
    assert stored.text == text
    assert stored.requested_model == "production"
    assert stored.version == base_version
    assert stored.completion_tokens == plain.usage.completion_tokens  # type: ignore[union-attr]


def test_a_reader_who_leaves_is_recorded_too(
    engine: Engine, site: str, project: Project, base_version: Version, program: User
) -> None:
    client = connect(site, project, program)
    stream = client.chat.completions.create(
        model="base",
        messages=HELLO,  # type: ignore[arg-type]
        max_tokens=2000,
        stream=True,
    )
    first = next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    while not Completion.objects.filter(pk=first.id).exists():
        assert time.monotonic() < deadline, "the broken-off answer was never recorded"
        time.sleep(0.05)
    assert Completion.objects.get(pk=first.id).finish_reason == "cancelled"


def test_promote_and_roll_back_fail_no_request_and_mix_no_versions(
    engine: Engine,
    site: str,
    project: Project,
    tuned: Version,
    program: User,
    owner: User,
) -> None:
    client = connect(site, project, program)
    stop = threading.Event()
    answers: list[str] = []

    def ask() -> None:
        while not stop.is_set():
            answer = client.chat.completions.create(
                model="production",
                messages=HELLO,  # type: ignore[arg-type]
                max_tokens=3,
            )
            answers.append(answer.id)

    def more() -> None:
        seen = len(answers)
        while len(answers) < seen + 4:
            time.sleep(0.01)

    with ThreadPoolExecutor(3) as threads:
        askers = [threads.submit(ask) for _ in range(3)]
        try:
            more()
            services.promote(project=project, version=tuned, by=owner, why="a test")
            more()
            move = services.roll_back(project=project, by=owner)
            more()
        finally:
            stop.set()
        for asker in askers:
            asker.result()  # raises if any request failed
    assert move.milliseconds < 1000
    stored = Completion.objects.filter(pk__in=answers)
    assert stored.count() == len(answers)
    assert set(stored.values_list("version__number", flat=True)) == {0, 1}
    assert Alias.objects.get(project=project).version.is_base


def test_an_engine_that_restarted_is_given_the_adapter_again(
    folder: Path, settings: Any, site: str, project: Project, tuned: Version, program: User
) -> None:
    fresh = start_engine(folder)
    try:
        settings.ENGINE_URLS, settings.ENGINE_API_KEY = [fresh.url], KEY
        answer = connect(site, project, program).chat.completions.create(
            model="v1",
            messages=HELLO,  # type: ignore[arg-type]
            max_tokens=2,
        )
        assert answer.model == "v1"
        assert services.keep_engines_warm() == 0, "nothing is promoted, so nothing must be warm"
        services.promote(project=project, version=tuned, by=None, why="a test")
        httpx.post(
            f"{fresh.url}/v1/unload_lora_adapter",
            json={"lora_name": tuned.served_name},
            headers={"Authorization": f"Bearer {KEY}"},
        ).raise_for_status()
        assert services.keep_engines_warm() == 1
    finally:
        stop_engine(fresh)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ("{not json", 400, "not JSON"),
        ({"messages": HELLO}, 400, "Name a “model”"),
        ({"model": "v99", "messages": HELLO}, 404, "no model “v99”"),
        ({"model": "production", "messages": []}, 400, "at least one"),
        ({"model": "production", "messages": [{"role": "robot", "content": "x"}]}, 400, "role"),
        ({"model": "production", "messages": HELLO, "n": 3}, 400, "one answer"),
        ({"model": "production", "messages": HELLO, "temperature": "hot"}, 400, "temperature"),
    ],
)
def test_bad_requests_get_a_sentence(
    engine: Engine,
    site: str,
    project: Project,
    base_version: Version,
    program: User,
    body: Any,
    status: int,
    sentence: str,
) -> None:
    _, text = create_token(project=project, user=program, name="t", scopes=[Scope.CHAT])
    response = httpx.post(
        f"{site}/v1/chat/completions",
        content=body if isinstance(body, str) else json.dumps(body),
        headers={"Authorization": f"Bearer {text}"},
    )
    assert response.status_code == status, response.text
    assert sentence in response.json()["error"]["message"]
    assert not Completion.objects.exists()


def test_who_may_not_chat_is_told_why(
    engine: Engine, site: str, project: Project, base_version: Version, program: User
) -> None:
    reader = connect(site, project, program, Scope.READ)
    with pytest.raises(openai.PermissionDeniedError, match="scope"):
        reader.models.list()
    with pytest.raises(openai.AuthenticationError, match="not known"):
        openai.OpenAI(base_url=f"{site}/v1", api_key="laurel_x", max_retries=0).models.list()


def test_a_project_never_sees_anothers_models(
    engine: Engine, site: str, tuned: Version, stranger: User
) -> None:
    elsewhere = create_project(name="Empty", by=stranger)
    client = connect(site, elsewhere, stranger)
    assert list(client.models.list()) == []
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="v1", messages=HELLO)  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=tuned.served_name, messages=HELLO)  # type: ignore[arg-type]


def test_no_engine_is_a_503_with_a_sentence(
    site: str, project: Project, base_version: Version, program: User, monkeypatch: Any
) -> None:
    monkeypatch.setattr("inference.gateway.PATIENCE_SECONDS", 0.2)
    client = connect(site, project, program)
    with pytest.raises(openai.InternalServerError, match="No model server answers"):
        client.chat.completions.create(model="base", messages=HELLO)  # type: ignore[arg-type]
