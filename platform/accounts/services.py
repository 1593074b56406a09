"""What changes accounts: projects, members, tokens, the audit trail."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db import transaction

from accounts.errors import ProductError
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
    membership, _ = Membership.objects.update_or_create(
        user=user, project=project, defaults={"role": role}
    )
    audit(project=project, by=by, action="member.set", target=user.username, role=str(role))
    return membership


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
