"""Users, projects, memberships, API tokens and the audit trail."""

from __future__ import annotations

import json
import uuid
from typing import Any

from django.contrib.auth.models import AbstractUser
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now
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


class Event(models.TextChoices):
    """What a project can have posted to an address of its own."""

    JUDGEMENT_CREATED = "judgement.created", "a judgement was stored"
    JUDGEMENT_RETRACTED = "judgement.retracted", "a judgement was taken back"
    CAMPAIGN_OPENED = "campaign.opened", "a campaign takes judgements"
    CAMPAIGN_PAUSED = "campaign.paused", "a campaign was paused"
    CAMPAIGN_COMPLETED = "campaign.completed", "a campaign has all its judgements"
    CAMPAIGN_CLOSED = "campaign.closed", "a campaign was closed"
    CAMPAIGN_FAILED = "campaign.failed", "a campaign's responses could not be generated"
    ALIAS_MOVED = "alias.moved", "a version was promoted or rolled back"


class WebhookQuerySet(models.QuerySet["Webhook"]):
    def free(self) -> WebhookQuerySet:
        """Return the active webhooks for which no worker is sending."""
        return self.filter(active=True).exclude(sending_until__gt=Now())


class Webhook(models.Model):
    """An address that is told of a project's events, signed as Standard Webhooks says."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="webhooks")
    url = models.URLField(max_length=500)
    events = ArrayField(models.CharField(max_length=30, choices=Event.choices))
    # Sealed by accounts.sealing: a copy of the database signs nothing.
    secret = models.TextField()
    active = models.BooleanField(default=True)
    # Why it was switched off by us rather than by an admin.
    reason = models.CharField(max_length=300, blank=True)
    # The lease of the worker that sends for it now, or a pause after a time-out.
    sending_until = models.DateTimeField(null=True, blank=True)
    created_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = WebhookQuerySet.as_manager()

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.url


class MessageQuerySet(models.QuerySet["WebhookMessage"]):
    def due(self) -> MessageQuerySet:
        """Return the messages whose next attempt is not in the future."""
        return self.filter(state=WebhookMessage.State.PENDING, due_at__lte=Now())


class WebhookMessage(models.Model):
    """One event on its way to one address; written in the transaction of the event itself."""

    class State(models.TextChoices):
        PENDING = "pending", "pending"
        DELIVERED = "delivered", "delivered"
        FAILED = "failed", "given up"

    key = models.UUIDField(default=uuid.uuid4, unique=True)
    webhook = models.ForeignKey(Webhook, on_delete=models.CASCADE, related_name="messages")
    event = models.CharField(max_length=30, choices=Event.choices)
    data = models.JSONField()
    state = models.CharField(max_length=10, choices=State.choices, db_default=State.PENDING)
    attempts = models.PositiveSmallIntegerField(db_default=0)
    due_at = models.DateTimeField(db_default=Now())
    status_code = models.PositiveSmallIntegerField(null=True, blank=True)
    error = models.CharField(max_length=300, blank=True, db_default="")
    created_at = models.DateTimeField(db_default=Now())
    delivered_at = models.DateTimeField(null=True, blank=True)

    objects = MessageQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(state="delivered", delivered_at__isnull=False)
                | ~models.Q(state="delivered") & models.Q(delivered_at__isnull=True),
                name="delivered_says_when",
            )
        ]
        indexes = [
            models.Index(
                fields=["webhook", "due_at"],
                condition=models.Q(state="pending"),
                name="webhook_message_due",
            ),
            models.Index(fields=["webhook", "-id"], name="webhook_message_newest"),
        ]

    def __str__(self) -> str:
        return f"{self.event} for {self.webhook_id}"

    @property
    def message_id(self) -> str:
        """Return the id by which its receiver knows a repeated delivery."""
        return f"msg_{self.key.hex}"

    @property
    def body(self) -> str:
        """Return the JSON that is signed and sent: type, timestamp and data."""
        said = {"type": self.event, "timestamp": self.created_at.isoformat(), "data": self.data}
        return json.dumps(said, ensure_ascii=False)
