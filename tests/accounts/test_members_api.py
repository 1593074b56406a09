"""Members over REST: found by who leads, changed by who administers, never without an admin."""

from __future__ import annotations

from collections.abc import Callable

from rest_framework.test import APIClient

from accounts.models import Membership, Project, User


def test_a_lead_finds_the_ids_of_annotators(
    api: Callable[..., APIClient], lead: User, annotator: User, stranger: User
) -> None:
    [found] = api(lead).get("/api/members/", {"role": "annotator"}).json()["results"]
    assert (found["id"], found["username"]) == (annotator.pk, "anna")
    assert api(annotator).get("/api/members/").status_code == 403
    assert api(lead).post("/api/members/", {"username": "sven"}).status_code == 403


def test_an_admin_adds_changes_and_removes_members(
    api: Callable[..., APIClient], owner: User, project: Project, stranger: User
) -> None:
    caller = api(owner)
    for role in ("annotator", "lead"):
        said = caller.post("/api/members/", {"username": "sven", "role": role})
        assert said.status_code == 200, said.content
        assert Membership.objects.get(project=project, user=stranger).role == role
    assert caller.delete(f"/api/members/{stranger.pk}/").status_code == 204
    assert not Membership.objects.filter(project=project, user=stranger).exists()
    assert caller.delete(f"/api/members/{stranger.pk}/").status_code == 404
    assert caller.delete(f"/api/members/{owner.pk}/").status_code == 409
    assert "username" in caller.post("/api/members/", {"username": "x"}).json()["message"]
