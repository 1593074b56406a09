"""Users, projects, memberships, API tokens and the audit trail."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import AbstractUser
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.utils.text import slugify
from knox.models import AbstractAuthToken, AuthTokenManager


class User(AbstractUser):  # type: ignore[django-manager-missing]
    """A person or a program that acts in one or more projects."""


class Role(models.TextChoices):
    """What a member may do; each role includes the ones before it."""

    ANNOTATOR = "annotator", "annotator"
    LEAD = "lead", "lead"
    ADMIN = "admin", "admin"

    @property
    def rank(self) -> int:
        """Return 0 for annotator, 1 for lead, 2 for admin."""
        return list(Role).index(self)


class ProjectQuerySet(models.QuerySet["Project"]):
    def visible_to(self, user: Any) -> ProjectQuerySet:
        """Return the projects in which the user is a member."""
        return self.filter(memberships__user=user)


class Project(models.Model):
    """A department's own prompts, judgements, data and models."""

    name = models.CharField(max_length=120)
    slug = models.SlugField(max_length=60, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ProjectQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def free_slug(name: str) -> str:
        """Return a slug for the name that no project has yet."""
        stem = slugify(name)[:50] or "project"
        slug, number = stem, 1
        while Project.objects.filter(slug=slug).exists():
            number += 1
            slug = f"{stem}-{number}"
        return slug


class MembershipQuerySet(models.QuerySet["Membership"]):
    def at_least(self, role: Role) -> MembershipQuerySet:
        """Return the memberships whose role includes ``role``."""
        return self.filter(role__in=[each for each in Role if each.rank >= role.rank])


class Membership(models.Model):
    """One user's role in one project."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role.choices, default=Role.ANNOTATOR)

    objects = MembershipQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "project"], name="one_membership_per_project"),
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="known_role"),
        ]

    def __str__(self) -> str:
        return f"{self.user} ({self.role}, {self.project})"

    def may(self, role: Role) -> bool:
        """Say whether this membership includes what ``role`` may do."""
        return Role(self.role).rank >= role.rank


class Scope(models.TextChoices):
    """What an API token may be used for; it never allows more than its owner's role."""

    READ = "read", "read what the owner may see"
    JUDGE = "judge", "take tasks and submit judgements"
    CHAT = "chat", "call deployed models and send feedback"
    MANAGE = "manage", "run campaigns, training, promotion and roll-back"


class ApiToken(AbstractAuthToken):
    """A hashed bearer token for one user in one project; its text is shown once."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+")
    name = models.CharField(max_length=80)
    scopes = ArrayField(models.CharField(max_length=10, choices=Scope.choices), default=list)

    objects = AuthTokenManager()

    def __str__(self) -> str:
        return f"{self.name} ({self.token_key}…)"


class AuditEntry(models.Model):
    """Who did what to what, kept for good."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="audit_entries")
    user = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    action = models.CharField(max_length=60)
    target = models.CharField(max_length=200)
    details = models.JSONField(default=dict, blank=True)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-at", "-id"]
        indexes = [models.Index(fields=["project", "-at"], name="audit_by_project")]

    def __str__(self) -> str:
        return f"{self.action} {self.target}"
