"""The command that lets people in."""

from __future__ import annotations

import pytest
from django.core.management import CommandError, call_command

from accounts.models import Membership, Project, User


@pytest.fixture(autouse=True)
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUREL_PASSWORD", "a long enough password")


def test_it_makes_the_account_and_the_membership(project: Project) -> None:
    call_command("add_member", project.slug, "nina", "annotator")
    assert User.objects.get(username="nina").check_password("a long enough password")
    assert Membership.objects.get(user__username="nina", project=project).role == "annotator"


def test_it_makes_a_project_with_its_first_admin(db: None) -> None:
    call_command("add_member", "Legal", "nina", "admin", "--create")
    assert Membership.objects.get(user__username="nina").project.slug == "legal"


def test_it_changes_a_role_without_touching_the_password(project: Project, lead: User) -> None:
    before = lead.password
    call_command("add_member", project.slug, lead.username, "admin")
    lead.refresh_from_db()
    assert lead.password == before
    assert lead.memberships.get().role == "admin"


def test_it_leaves_nothing_behind_when_it_refuses(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CommandError, match="no project"):
        call_command("add_member", "nowhere", "nina", "annotator")
    monkeypatch.setenv("LAUREL_PASSWORD", "short")
    with pytest.raises(CommandError, match="too short"):
        call_command("add_member", project.slug, "nina", "annotator")
    assert not User.objects.filter(username="nina").exists()
