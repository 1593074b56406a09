"""The one family of getters that decides who may see and do what.

A page asks ``get_membership``; a REST view declares ``scope`` and ``role`` and asks
``self.membership(...)``.
Whoever is not a member gets the same 404 as for a project that does not exist.
"""

from __future__ import annotations

from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from accounts.models import ApiToken, Membership, Project, Role, Scope, User
from accounts.pages import asked


def _require(membership: Membership | None, role: Role) -> Membership:
    if membership is None:
        raise Http404
    if not membership.may(role):
        raise PermissionDenied(
            f"This needs the role “{role}”; yours here is “{membership.role}”. "
            "Ask an admin of the project."
        )
    return membership


def get_membership(request: HttpRequest, slug: str, role: Role = Role.ANNOTATOR) -> Membership:
    """Return the signed-in user's membership of the project, or raise 404 / 403."""
    found = Membership.objects.select_related("project", "user").filter(
        user_id=request.user.pk or 0, project__slug=slug
    )
    membership = _require(found.first(), role)
    request.membership = membership  # type: ignore[attr-defined]
    return membership


class HasScope(BasePermission):
    """Refuse a token whose scopes do not include what the view declares."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        if not isinstance(request.auth, ApiToken):
            return True  # a session acts with the user's full role
        scope: Scope = view.scope  # type: ignore[attr-defined]
        if scope not in request.auth.scopes:
            raise PermissionDenied(
                f"This token has not the scope “{scope}”. "
                "Make one that has it on the project's tokens page."
            )
        return True


class HasRole(BasePermission):
    """Refuse who has the role that the view declares in no project, before the body is read.

    Annotators' views ask no more than ``membership`` does: judging pays for each query.
    """

    def has_permission(self, request: Request, view: APIView) -> bool:
        assert isinstance(view, ProjectAPIView)
        if view.role != Role.ANNOTATOR and not view.projects().exists():
            raise PermissionDenied(
                f"This needs the role “{view.role}” in a project. Ask an admin of it."
            )
        return True


class ProjectAPIView(APIView):
    """A REST operation inside projects: declares the token scope and the role that it needs."""

    scope: Scope = Scope.READ
    role: Role = Role.ANNOTATOR
    # What POST needs, where one view both lists and creates.
    write_scope: Scope | None = None
    write_role: Role | None = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        if request.method not in SAFE_METHODS:
            self.scope = self.write_scope or self.scope
            self.role = self.write_role or self.role
        super().initial(request, *args, **kwargs)

    def get_permissions(self) -> list[Any]:
        return [*super().get_permissions(), HasScope(), HasRole()]

    def projects(self, role: Role | None = None) -> Any:
        """Return the projects in which this caller has the role; a token sees only its own."""
        memberships = Membership.objects.filter(user=self.user).at_least(role or self.role)
        if isinstance(self.request.auth, ApiToken):
            memberships = memberships.filter(project=self.request.auth.project_id)
        return Project.objects.filter(memberships__in=memberships)

    def membership(self, project_id: int) -> Membership:
        """Return the caller's membership of an object's project, or raise 404 / 403."""
        found = Membership.objects.select_related("project").filter(
            user=self.user, project_id=project_id
        )
        if isinstance(self.request.auth, ApiToken):
            found = found.filter(project=self.request.auth.project_id)
        return _require(found.first(), self.role)

    def admit(self, membership: Membership | None) -> None:
        """Raise 404 / 403 unless this membership of the caller's lets them (and their token) in."""
        token = self.request.auth
        if membership and isinstance(token, ApiToken) and membership.project_id != token.project_id:
            membership = None
        _require(membership, self.role)

    def project(self) -> Project:
        """Return the project a new object goes to: the token's, the named one, or the only one."""
        if isinstance(self.request.auth, ApiToken):
            return self.membership(self.request.auth.project_id).project
        slug = asked(self.request.query_params, "project")
        found = Membership.objects.select_related("project").filter(user=self.user)
        if slug:
            return _require(found.filter(project__slug=slug).first(), self.role).project
        memberships = list(found[:2])
        if len(memberships) == 1:
            return _require(memberships[0], self.role).project
        raise Http404("Name the project with ?project=<slug>.")

    @property
    def user(self) -> User:
        assert isinstance(self.request.user, User)
        return self.request.user
