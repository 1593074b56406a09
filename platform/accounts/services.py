"""What changes accounts: projects, members, tokens, the audit trail."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db import transaction

from accounts.errors import Conflict, ProductError
from accounts.models import ApiToken, AuditEntry, Membership, Project, Role, Scope, User


@transaction.atomic
def create_project(*, name: str, by: User) -> Project:
    """Create a project whose first admin is ``by``."""
    project = Project(name=name, slug=Project.free_slug(name))
    project.full_clean()
    project.save()
    Membership.objects.create(user=by, project=project, role=Role.ADMIN)
    return project


@transaction.atomic
def set_member(*, project: Project, user: User, role: Role, by: User | None = None) -> Membership:
    """Give the user this role in the project, whether or not they were a member."""
    if role != Role.ADMIN:
        _keep_an_admin(project, user)
    membership, _ = Membership.objects.update_or_create(
        user=user, project=project, defaults={"role": role}
    )
    audit(project=project, by=by, action="member.set", target=user.username, role=str(role))
    return membership


@transaction.atomic
def remove_member(*, project: Project, user: User, by: User) -> None:
    """End the user's membership and their tokens for the project; what they judged stays."""
    _keep_an_admin(project, user)
    removed, _ = Membership.objects.filter(project=project, user=user).delete()
    if not removed:
        raise Conflict(f"{user.username} is not a member any more.")
    ApiToken.objects.filter(project=project, user=user).delete()
    audit(project=project, by=by, action="member.remove", target=user.username)


def _keep_an_admin(project: Project, user: User) -> None:
    """Raise Conflict if the user is the project's only admin; locks its admins until commit."""
    admins = Membership.objects.filter(project=project, role=Role.ADMIN).order_by("pk")
    if [admin.user_id for admin in admins.select_for_update()] == [user.pk]:
        raise Conflict(
            f"{user.username} is the only admin of {project.name}. Make somebody else admin first."
        )


@transaction.atomic
def revoke_token(*, token: ApiToken, by: User) -> None:
    """End a token at once; programs that use it are refused from now on."""
    audit(project=token.project, by=by, action="token.revoke", target=token.name)
    token.delete()


@transaction.atomic
def create_token(
    *, project: Project, user: User, name: str, scopes: list[Scope], days: int | None = 90
) -> tuple[ApiToken, str]:
    """Return a new token and its text, shown only now. ``days=None`` never expires."""
    if not Membership.objects.filter(user=user, project=project).exists():
        raise ProductError("Only members of the project can have a token for it.")
    if not scopes:
        raise ProductError("Choose at least one scope for the token.")
    expiry = None if days is None else timedelta(days=days)
    token, text = ApiToken.objects.create(
        user=user, expiry=expiry, project=project, name=name, scopes=[str(s) for s in scopes]
    )
    audit(project=project, by=user, action="token.create", target=name, scopes=token.scopes)
    return token, text


def audit(*, project: Project, by: User | None, action: str, target: str, **details: Any) -> None:
    """Append a line to the project's audit trail."""
    AuditEntry.objects.create(
        project=project, user=by, action=action, target=target[:200], details=details
    )
