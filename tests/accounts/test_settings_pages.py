"""Settings: tokens whose text is shown once, and members of whom one stays admin."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from accounts.models import ApiToken, AuditEntry, Membership, Project, Role, Scope, User
from accounts.services import create_token, set_member
from tests.conftest import make_user

Login = Callable[[User], Client]


def url(name: str, project: Project, *args: Any) -> str:
    return reverse(name, args=[project.slug, *args])


def member(project: Project, user: User) -> Membership:
    return Membership.objects.get(project=project, user=user)


def test_it_opens_tokens_to_members_and_members_to_admins(
    project: Project, login: Login, stranger: User, annotator: User, lead: User, owner: User
) -> None:
    users = (stranger, annotator, lead, owner)
    tokens = [login(user).get(url("tokens", project)).status_code for user in users]
    members = [login(user).get(url("members", project)).status_code for user in users]
    assert tokens == [404, 200, 200, 200]
    assert members == [404, 403, 403, 200]


def test_it_shows_the_text_of_a_new_token_once(
    project: Project, annotator: User, login: Login
) -> None:
    client = login(annotator)
    form = {"name": "notebook", "scopes": ["read", "judge"], "days": "30"}
    answer = client.post(url("tokens", project), form)
    text = re.search(r"laurel_\w{40,}", answer.content.decode())
    assert text is not None
    assert "no-store" in answer["Cache-Control"]
    assert text[0] not in client.get(url("tokens", project)).content.decode()
    api = APIClient()
    api.credentials(HTTP_AUTHORIZATION=f"Bearer {text[0]}")
    assert api.get("/api/me").json()["username"] == "anna"
    token = ApiToken.objects.get()
    assert (token.scopes, token.project) == (["read", "judge"], project)
    assert token.expiry is not None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": ""}, "This field is required."),
        ({"scopes": []}, "Choose at least one thing that it may do."),
        ({"scopes": ["everything"]}, "Select a valid choice."),
        ({"days": "100000"}, "Select a valid choice."),
    ],
)
def test_it_refuses_a_token(
    changes: dict[str, Any], sentence: str, project: Project, annotator: User, login: Login
) -> None:
    form: dict[str, Any] = {"name": "notebook", "scopes": ["read"], "days": "30"}
    answer = login(annotator).post(url("tokens", project), form | changes)
    assert answer.status_code == 400
    assert sentence in answer.content.decode()
    assert not ApiToken.objects.exists()


def test_it_revokes_ones_own_token(project: Project, annotator: User, login: Login) -> None:
    token, text = create_token(
        project=project, user=annotator, name="old", scopes=[Scope.READ], days=None
    )
    form = {"key": token.token_key, "owner": "anna"}
    assert login(annotator).post(url("token_revoke", project), form).status_code == 302
    api = APIClient()
    api.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
    assert api.get("/api/me").status_code == 401
    assert AuditEntry.objects.filter(action="token.revoke", target="old").exists()


def test_it_lets_only_admins_see_and_revoke_others_tokens(
    project: Project, annotator: User, lead: User, owner: User, login: Login
) -> None:
    token, _ = create_token(project=project, user=lead, name="lenas", scopes=[Scope.READ])
    form = {"key": token.token_key, "owner": "lena"}
    assert "lenas" not in login(annotator).get(url("tokens", project)).content.decode()
    assert login(annotator).post(url("token_revoke", project), form).status_code == 404
    assert "lenas" in login(owner).get(url("tokens", project)).content.decode()
    assert login(owner).post(url("token_revoke", project), form).status_code == 302
    assert not ApiToken.objects.exists()


def test_it_adds_a_member_by_name(project: Project, owner: User, login: Login) -> None:
    make_user("nora")
    answer = login(owner).post(url("members", project), {"username": "nora", "role": "lead"})
    assert answer.status_code == 302
    assert Membership.objects.get(user__username="nora").role == Role.LEAD


@pytest.mark.parametrize(
    ("username", "sentence"),
    [("nobody", "Nobody here has this name."), ("anna", "anna is a member already.")],
)
def test_it_refuses_a_member(
    username: str, sentence: str, project: Project, annotator: User, owner: User, login: Login
) -> None:
    form = {"username": username, "role": "admin"}
    answer = login(owner).post(url("members", project), form)
    assert answer.status_code == 400
    assert sentence in answer.content.decode()
    assert member(project, annotator).role == Role.ANNOTATOR


def test_it_changes_a_role(project: Project, annotator: User, owner: User, login: Login) -> None:
    address = url("member_role", project, member(project, annotator).pk)
    assert login(owner).post(address, {"role": "lead"}).status_code == 302
    assert member(project, annotator).role == Role.LEAD
    assert login(owner).post(address, {"role": "king"}).status_code == 400
    assert member(project, annotator).role == Role.LEAD


def test_it_removes_a_member_with_their_tokens(
    project: Project, annotator: User, owner: User, login: Login
) -> None:
    create_token(project=project, user=annotator, name="old", scopes=[Scope.READ])
    address = url("member_remove", project, member(project, annotator).pk)
    assert login(owner).post(address).status_code == 302
    assert not Membership.objects.filter(user=annotator).exists()
    assert not ApiToken.objects.filter(user=annotator).exists()
    assert login(annotator).get(url("tokens", project)).status_code == 404


def test_it_keeps_the_last_admin(project: Project, owner: User, lead: User, login: Login) -> None:
    client, pk = login(owner), member(project, owner).pk
    for answer in (
        client.post(url("member_remove", project, pk)),
        client.post(url("member_role", project, pk), {"role": "lead"}),
    ):
        assert answer.status_code == 409
        assert "olga is the only admin" in answer.content.decode()
    assert member(project, owner).role == Role.ADMIN
    set_member(project=project, user=lead, role=Role.ADMIN)
    answer = client.post(url("member_role", project, pk), {"role": "annotator"})
    assert answer["Location"] == url("tokens", project)
    assert member(project, owner).role == Role.ANNOTATOR


def test_it_touches_no_member_of_another_project(
    project: Project, stranger: User, owner: User, login: Login
) -> None:
    foreign = Membership.objects.get(user=stranger)
    assert login(owner).post(url("member_remove", project, foreign.pk)).status_code == 404
    assert login(owner).post(url("member_role", project, foreign.pk)).status_code == 404
    assert Membership.objects.filter(user=stranger).exists()


def test_it_lists_members_and_tokens_in_few_queries(
    project: Project,
    owner: User,
    login: Login,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    for number in range(6):
        user = make_user(f"user-{number}")
        set_member(project=project, user=user, role=Role.ANNOTATOR)
        create_token(project=project, user=user, name="one", scopes=[Scope.READ])
    client = login(owner)
    # session, user, membership, rows, projects
    with django_assert_num_queries(5):
        client.get(url("members", project))
    with django_assert_num_queries(5):
        client.get(url("tokens", project))
