"""People and things that tests are about: an owner, a lead, two annotators, and a stranger."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from rest_framework.test import APIClient

from accounts.models import Project, Role, Scope, User
from accounts.services import create_project, create_token, set_member
from feedback.assignment import make_slots
from feedback.extras import define
from feedback.models import Campaign, Item, Prompt, Response
from feedback.services import add_prompts
from inference.models import BaseModel, Version
from inference.services import adopt_base

PASSWORD = "a long password for tests"


@pytest.fixture(autouse=True)
def _own_folders(settings: Any, tmp_path: Path) -> None:
    """Keep every test's artifacts and runs apart."""
    settings.ARTIFACTS_DIR = tmp_path / "artifacts"
    settings.COPIES_DIR = tmp_path / "copies"
    settings.RUNS_DIR = tmp_path / "runs"
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.ENGINE_URLS = ["http://127.0.0.1:9"]  # nobody answers unless a test starts one


def make_user(name: str) -> User:
    """Return a new user with the tests' password."""
    return User.objects.create_user(name, password=PASSWORD)


@pytest.fixture
def owner(db: None) -> User:
    """Return Olga, admin of the project."""
    return make_user("olga")


@pytest.fixture
def project(owner: User) -> Project:
    return create_project(name="Support", by=owner)


@pytest.fixture
def lead(project: Project) -> User:
    """Return Lena, lead in the project."""
    user = make_user("lena")
    set_member(project=project, user=user, role=Role.LEAD)
    return user


@pytest.fixture
def annotator(project: Project) -> User:
    """Return Anna, annotator in the project."""
    user = make_user("anna")
    set_member(project=project, user=user, role=Role.ANNOTATOR)
    return user


@pytest.fixture
def second_annotator(project: Project) -> User:
    """Return Ben, another annotator in the project."""
    user = make_user("ben")
    set_member(project=project, user=user, role=Role.ANNOTATOR)
    return user


@pytest.fixture
def stranger(db: None) -> User:
    """Return Sven, admin of a project of his own and nothing else."""
    user = make_user("sven")
    create_project(name="Elsewhere", by=user)
    return user


@pytest.fixture
def base(tmp_path: Path, db: None) -> BaseModel:
    """Return a registered base model; its folder is empty."""
    folder = tmp_path / "base"
    folder.mkdir()
    return BaseModel.objects.create(
        name="tiny-base",
        source="made for this test",
        path=str(folder),
        digest=secrets.token_hex(32),
        licence="Apache-2.0",
        size_bytes=1,
        parameters=1,
    )


@pytest.fixture
def base_version(project: Project, base: BaseModel) -> Version:
    """Return version 0 of the project, which production names."""
    return adopt_base(project=project, base=base)


@pytest.fixture
def make_campaign(project: Project) -> Callable[..., Campaign]:
    """Return a maker of open campaigns whose responses are ready."""

    def make(
        *,
        items: int = 3,
        responses: int = 4,
        judgements_per_item: int = 2,
        kind: str = Campaign.Kind.RANKING,
        asks: dict[str, Any] | None = None,
        of: Project = project,
        name: str = "Tone",
        text: str = "Response {position} to question {number}.",
    ) -> Campaign:
        campaign = Campaign.objects.create(
            project=of,
            name=name,
            kind=kind,
            extras=define(asks or {}).as_dict(),
            state=Campaign.State.OPEN,
            judgements_per_item=judgements_per_item,
            responses_per_item=responses,
            to_generate=items,
            generated=items,
        )
        prompts: list[Prompt] = add_prompts(
            project=of, prompts=[f"Question {number} of {name}?" for number in range(items)]
        )
        for number, prompt in enumerate(prompts):
            item = Item.objects.create(campaign=campaign, prompt=prompt)
            for position in range(responses):
                Response.objects.create(
                    item=item,
                    position=position,
                    text=text.format(position=position, number=number),
                )
            for slot in make_slots(item, campaign=campaign, responses=responses):
                slot.save()
        return campaign

    return make


@pytest.fixture
def campaign(make_campaign: Callable[..., Campaign]) -> Campaign:
    """Return an open campaign: three items of four responses, two judgements each."""
    return make_campaign()


@pytest.fixture
def login() -> Callable[[User], Client]:
    """Return a function that gives a browser signed in as somebody."""

    def sign_in(user: User) -> Client:
        client = Client()
        client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
        return client

    return sign_in


@pytest.fixture
def api(project: Project) -> Callable[..., APIClient]:
    """Return a function that gives an API client with a user's token for the project."""

    def connect(
        user: User, *scopes: Scope, of: Project | None = None, days: int | None = 1
    ) -> APIClient:
        _, text = create_token(
            project=of or project, user=user, name="test", scopes=list(scopes or Scope), days=days
        )
        client = APIClient()
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
        return client

    return connect
