"""Log-in, the list of projects, a project's front page, and the pages for errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.template.loader import get_template
from django.test import Client

from accounts.models import Project, Role, User
from accounts.services import create_project, set_member
from feedback.models import Campaign
from inference.models import Version
from tests.conftest import PASSWORD

Login = Callable[[User], Client]


def test_it_logs_in_and_goes_where_one_wanted_to_go(annotator: User, client: Client) -> None:
    form = {"username": "anna", "password": PASSWORD, "next": "/p/support/queue/"}
    assert client.post("/login/", form)["Location"] == "/p/support/queue/"


def test_it_refuses_a_wrong_password_with_a_sentence(annotator: User, client: Client) -> None:
    answer = client.post("/login/", {"username": "anna", "password": "guess"})
    assert answer.status_code == 200
    assert b"notice-bad" in answer.content


def test_it_never_leaves_the_site_after_the_log_in(annotator: User, client: Client) -> None:
    form = {"username": "anna", "password": PASSWORD, "next": "https://elsewhere.example/"}
    assert client.post("/login/", form)["Location"] == "/"


def test_it_locks_a_guesser_out(annotator: User, client: Client, settings: Any) -> None:
    settings.AXES_FAILURE_LIMIT = 2
    for _ in range(2):
        answer = client.post("/login/", {"username": "anna", "password": "guess"})
    assert answer.status_code == 429
    assert b"Too many wrong passwords" in answer.content


def test_it_sends_the_whole_page_to_the_log_in_when_a_fragment_finds_no_session(
    client: Client,
) -> None:
    headers = {"HX-Request": "true", "HX-Current-URL": "http://testserver/p/a/queue/?x=1&y=2"}
    answer = client.get("/login/", headers=headers)
    assert answer["HX-Redirect"] == "/login/?next=%2Fp%2Fa%2Fqueue%2F%3Fx%3D1%26y%3D2"


def test_it_logs_out(annotator: User, login: Login) -> None:
    visitor = login(annotator)
    assert visitor.post("/logout/")["Location"] == "/login/"
    assert visitor.get("/")["Location"].startswith("/login/")


def test_it_goes_to_the_only_project(annotator: User, login: Login, project: Project) -> None:
    assert login(annotator).get("/")["Location"] == f"/p/{project.slug}/"


def test_it_lists_ones_own_projects_and_no_others(
    owner: User, stranger: User, project: Project, login: Login
) -> None:
    create_project(name="Another of mine", by=owner)
    page = login(owner).get("/").content.decode()
    assert "Support" in page
    assert "Another of mine" in page
    assert "Elsewhere" not in page


def test_it_tells_somebody_without_a_project_what_to_do(db: None, login: Login) -> None:
    nobody = User.objects.create_user("nobody", password=PASSWORD)
    assert b"No project yet" in login(nobody).get("/").content


def test_it_shows_a_lead_what_to_do_next(
    lead: User, campaign: Campaign, base_version: Version, login: Login
) -> None:
    answer = login(lead).get(f"/p/{campaign.project.slug}/")
    page = answer.content.decode()
    assert answer.context["next"].title == "People are judging"
    assert "Tone" in page
    assert "tiny-base" in page


def test_it_begins_with_prompts(lead: User, project: Project, login: Login) -> None:
    answer = login(lead).get(f"/p/{project.slug}/")
    assert answer.context["next"] is None or answer.context["next"].title == "Add prompts"


def test_it_takes_an_annotator_to_the_queue(annotator: User, login: Login) -> None:
    assert login(annotator).get("/p/support/")["Location"] == "/p/support/queue/"


def test_it_hides_the_project_from_a_stranger(
    project: Project, stranger: User, login: Login
) -> None:
    assert login(stranger).get(f"/p/{project.slug}/").status_code == 404


def test_it_needs_few_queries(
    lead: User, campaign: Campaign, login: Login, django_assert_max_num_queries: Any
) -> None:
    visitor = login(lead)
    with django_assert_max_num_queries(16):
        visitor.get(f"/p/{campaign.project.slug}/")


@pytest.mark.parametrize(
    ("role", "seen", "hidden"),
    [(Role.ANNOTATOR, ["Queue"], ["Campaigns", "Runs"]), (Role.LEAD, ["Queue"], [])],
)
def test_it_shows_only_the_pages_of_ones_role(
    project: Project, login: Login, role: Role, seen: list[str], hidden: list[str]
) -> None:
    user = User.objects.create_user("rita", password=PASSWORD)
    set_member(project=project, user=user, role=role)
    page = login(user).get(f"/p/{project.slug}/queue/").content.decode()
    for word in seen:
        assert f">{word}</a>" in page
    for word in hidden:
        assert f">{word}</a>" not in page


def test_it_says_what_to_do_at_a_wrong_address(client: Client) -> None:
    answer = client.get("/no/such/page")
    assert answer.status_code == 404
    assert b"There is no such page" in answer.content


@pytest.mark.parametrize("name", ["400.html", "403.html", "403_csrf.html", "404.html", "500.html"])
def test_it_renders_an_error_page_without_a_request(name: str) -> None:
    assert "<h1>" in get_template(name).render()


def test_it_allows_only_its_own_scripts(client: Client, db: None) -> None:
    answer = client.get("/login/")
    assert "script-src 'self'" in answer["Content-Security-Policy"]
    page = answer.content.decode()
    assert " onclick=" not in page
    assert page.count("<script") == page.count("<script src=")
