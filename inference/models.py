"""Base models, adapter versions, aliases with their ledger, and completions."""

from __future__ import annotations

import uuid
from pathlib import Path

from django.conf import settings
from django.db import models

from accounts.models import Project, User


class BaseModel(models.Model):
    """A language model as published, converted once to safetensors; adapters are trained on it."""

    name = models.CharField(max_length=200, unique=True)
    source = models.CharField(max_length=300)
    path = models.CharField(max_length=500)
    digest = models.CharField(max_length=64)
    licence = models.CharField(max_length=100)
    size_bytes = models.BigIntegerField()
    parameters = models.BigIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class VersionQuerySet(models.QuerySet["Version"]):
    def in_production(self) -> VersionQuerySet:
        """Return what serves now: one version a project, or none yet."""
        return self.filter(aliases__name=AliasName.PRODUCTION)

    def adapters(self) -> VersionQuerySet:
        """Return only what was trained, without the plain bases."""
        return self.exclude(digest="")


class Version(models.Model):
    """One immutable model: the plain base (number 0), an adapter on it, or a whole model.

    Engines serve adapters on the base that they hold; a whole model is kept, proved and downloaded,
    and served elsewhere.

    The row and the files under ``path`` never change; a database trigger refuses updates.
    """

    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    base = models.ForeignKey(BaseModel, on_delete=models.PROTECT, related_name="versions")
    parent = models.ForeignKey(
        "self", on_delete=models.PROTECT, null=True, blank=True, related_name="children"
    )
    method = models.CharField(max_length=20, blank=True)
    digest = models.CharField(max_length=64, blank=True)
    path = models.CharField(max_length=500, blank=True)
    snapshot_digest = models.CharField(max_length=64, blank=True)
    metrics = models.JSONField(default=dict, blank=True)
    proof = models.JSONField(default=dict, blank=True)
    created_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = VersionQuerySet.as_manager()

    class Meta:
        ordering = ["project", "-number"]
        constraints = [
            models.UniqueConstraint(fields=["project", "number"], name="version_number_once"),
            models.UniqueConstraint(
                fields=["project", "digest"],
                condition=~models.Q(digest=""),
                name="adapter_registered_once_per_project",
            ),
            models.CheckConstraint(
                condition=models.Q(number=0, digest="", path="")
                | (models.Q(number__gt=0) & ~models.Q(digest="") & ~models.Q(path="")),
                name="number_0_is_the_base_and_only_it",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """Return the short name that people use: ``base`` or ``v3``."""
        return "base" if self.is_base else f"v{self.number}"

    @property
    def is_base(self) -> bool:
        return self.number == 0

    @property
    def is_full(self) -> bool:
        """Say whether it is a whole model of its own rather than an adapter on the base."""
        return bool(self.proof.get("weights") == "full")

    @property
    def is_dora(self) -> bool:
        """Say whether it is a DoRA, which engines that serve many adapters at once do not take."""
        return bool(self.proof.get("weights") == "dora")

    @property
    def served_name(self) -> str:
        """Return the immutable name by which engines know this version."""
        return self.base.name if self.is_base else f"v-{self.digest[:16]}"

    @property
    def is_servable(self) -> bool:
        """Say whether engines of ours can write answers with it."""
        return not (self.method == "reward" or self.is_full or self.is_dora)

    @property
    def folder(self) -> Path:
        return Path(settings.ARTIFACTS_DIR) / self.path


class AliasName(models.TextChoices):
    PRODUCTION = "production", "production"
    CANARY = "canary", "canary"


class Alias(models.Model):
    """A movable name for a version; only ``inference.services.move_alias`` moves it."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="aliases")
    name = models.CharField(max_length=20, choices=AliasName.choices)
    version = models.ForeignKey(Version, on_delete=models.PROTECT, related_name="aliases")

    class Meta:
        ordering = ["-name"]
        constraints = [
            models.UniqueConstraint(fields=["project", "name"], name="alias_once_per_project"),
            models.CheckConstraint(
                condition=models.Q(name__in=AliasName.values), name="known_alias"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} → {self.version}"


class AliasMove(models.Model):
    """One line of the alias ledger: appended, never changed (a database trigger refuses)."""

    class Kind(models.TextChoices):
        SET = "set", "first set"
        PROMOTE = "promote", "promoted"
        ROLL_BACK = "roll_back", "rolled back"

    alias = models.ForeignKey(Alias, on_delete=models.CASCADE, related_name="moves")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    from_version = models.ForeignKey(
        Version, on_delete=models.PROTECT, null=True, blank=True, related_name="moves_away"
    )
    to_version = models.ForeignKey(Version, on_delete=models.PROTECT, related_name="moves_here")
    by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    why = models.CharField(max_length=500, blank=True)
    # The gate did not propose it, and an admin promoted it all the same; ``why`` says why.
    overruled = models.BooleanField(default=False, db_default=False)
    milliseconds = models.FloatField()
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.alias.name}: {self.from_version} → {self.to_version}"


class CompletionQuerySet(models.QuerySet["Completion"]):
    def asked_in_use(self) -> CompletionQuerySet:
        """Return the answers that people and programs asked for, and nobody judges blindly."""
        return self.filter(source__in=[Completion.Source.CHAT, Completion.Source.GATEWAY])


class Completion(models.Model):
    """One generated text with everything needed to say where it came from."""

    class Source(models.TextChoices):
        GATEWAY = "gateway", "a program through /v1"
        CHAT = "chat", "the chat page"
        CANDIDATE = "candidate", "a campaign's candidate"
        EVALUATION = "evaluation", "an evaluation"
        DRAFT = "draft", "a draft"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="completions")
    version = models.ForeignKey(Version, on_delete=models.PROTECT, related_name="completions")
    requested_model = models.CharField(max_length=200)
    source = models.CharField(max_length=12, choices=Source.choices)
    messages = models.JSONField()
    text = models.TextField()
    sampling = models.JSONField(default=dict, blank=True)
    finish_reason = models.CharField(max_length=20, blank=True)
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    milliseconds = models.FloatField(default=0)
    created_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = CompletionQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["project", "source", "-created_at"], name="completion_by_time"),
            models.Index(fields=["version", "source"], name="completion_by_version"),
        ]

    def __str__(self) -> str:
        return f"{self.id} ({self.version})"
