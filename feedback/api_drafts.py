"""REST: order drafts, read them, and decide each."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import Project
from accounts.pagination import NewestFirst, paginated
from accounts.serializers import Body, FiniteField
from feedback import drafts, drafts_undo
from feedback.api_checks import LeadView
from feedback.models import MAX_CORRECTION, Campaign, Prompt
from feedback.models_drafts import (
    MAX_GUIDANCE,
    MOST_DRAFTS,
    MOST_SHOTS,
    Draft,
    DraftQuerySet,
    DraftRequest,
)

NUMBER = r"^\d{1,18}$"


class DraftRequestSerializer(serializers.ModelSerializer[DraftRequest]):
    version_name = serializers.CharField(source="version.name")
    by = serializers.CharField(source="by.username")
    written = serializers.IntegerField(help_text="How many drafts are there, fit or not.")

    class Meta:
        model = DraftRequest
        fields = [
            "id",
            "client_id",
            "kind",
            "version",
            "version_name",
            "sampling",
            "seed",
            "guidance",
            "prompts",
            "shots",
            "wanted",
            "written",
            "tags",
            "state",
            "reason",
            "by",
            "at",
        ]


class DraftSerializer(serializers.ModelSerializer[Draft]):
    kind = serializers.CharField(source="request.kind")
    version = serializers.IntegerField(source="request.version_id")
    version_name = serializers.CharField(source="request.version.name")
    sampling = serializers.JSONField(source="completion.sampling", default=None)
    raw = serializers.CharField(help_text="What the version wrote, letter by letter.")
    proposed = serializers.SerializerMethodField()
    approved_as = serializers.SerializerMethodField()
    decided_by = serializers.CharField(source="decided_by.username", default=None)

    class Meta:
        model = Draft
        fields = [
            "id",
            "request",
            "number",
            "kind",
            "version",
            "version_name",
            "sampling",
            "completion",
            "prompt",
            "examples",
            "raw",
            "proposed",
            "state",
            "reason",
            "approved_as",
            "edited",
            "decided_by",
            "decided_at",
            "made_prompt",
            "response",
            "at",
        ]

    @extend_schema_field(OpenApiTypes.ANY)
    def get_proposed(self, draft: Draft) -> Any:
        """Return the messages of a prompt, or the text of an answer."""
        return draft.proposed

    @extend_schema_field(OpenApiTypes.ANY)
    def get_approved_as(self, draft: Draft) -> Any:
        """Return what was approved, edited or not."""
        return draft.approved_as


def _orders() -> QuerySet[DraftRequest]:
    return DraftRequest.objects.select_related("version", "project", "by").with_counts()


def _rows() -> DraftQuerySet:
    return Draft.objects.select_related(
        "request__version", "request__project", "completion", "decided_by"
    )


class DraftLeadView(LeadView):
    """An operation of leads on one draft."""

    def draft(self, pk: int) -> Draft:
        draft = get_object_or_404(_rows(), pk=pk)
        self.membership(draft.request.project_id)
        return draft

    def campaign_named(self, pk: int | None, project: Project) -> Campaign | None:
        return None if pk is None else get_object_or_404(Campaign, project=project, pk=pk)


class DraftRequestsView(LeadView):
    pagination_class = NewestFirst

    class Input(Body):
        kind = serializers.ChoiceField(choices=DraftRequest.Kind.choices)
        version = serializers.IntegerField(help_text="The id of a version.")
        wanted = serializers.IntegerField(min_value=1, max_value=MOST_DRAFTS)
        prompts = serializers.ListField(
            child=serializers.IntegerField(),
            required=False,
            max_length=10_000,
            help_text="Examples for new prompts, or what is answered; all prompts if left out.",
        )
        tag = serializers.CharField(max_length=60, required=False, help_text="Only with this tag.")
        shots = serializers.IntegerField(
            min_value=1, max_value=MOST_SHOTS, default=3, help_text="Examples shown at a time."
        )
        guidance = serializers.CharField(max_length=MAX_GUIDANCE, allow_blank=True, default="")
        tags = serializers.ListField(
            child=serializers.CharField(max_length=60), default=list, help_text="Of new prompts."
        )
        temperature = FiniteField(default=1.0)
        top_p = FiniteField(default=1.0)
        max_tokens = serializers.IntegerField(default=256)
        seed = serializers.IntegerField(min_value=0, max_value=2**31 - 1, default=0)
        client_id = serializers.UUIDField(required=False)

    @extend_schema(responses=DraftRequestSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List the orders, newest first."""
        rows = _orders().filter(project__in=self.projects())
        return paginated(rows, DraftRequestSerializer, request, self)

    @extend_schema(request=Input, responses={201: DraftRequestSerializer})
    def post(self, request: Request) -> Response:
        """Have a version draft prompts or answers; the same client id again is the same order."""
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        values = dict(data.validated_data)
        project = self.project()
        prompts = Prompt.objects.filter(project=project)
        if (ids := values.pop("prompts", None)) is not None:
            prompts = prompts.filter(pk__in=ids)
            if prompts.count() != len(set(ids)):
                raise serializers.ValidationError("prompts: one of them is not in this project.")
        if tag := values.pop("tag", ""):
            prompts = prompts.filter(tags__contains=[tag])
        source = {
            name: values.pop(name) for name in ("version", "temperature", "top_p", "max_tokens")
        }
        made = drafts.request_drafts(
            project=project,
            by=self.user,
            source=source,
            prompts=prompts,
            **values | {"kind": DraftRequest.Kind(values["kind"])},
        )
        return Response(DraftRequestSerializer(_orders().get(pk=made.pk)).data, status=201)


class DraftRequestView(LeadView):
    @extend_schema(responses=DraftRequestSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Fetch one order with how far it is."""
        found = get_object_or_404(_orders(), pk=pk)
        self.membership(found.project_id)
        return Response(DraftRequestSerializer(found).data)


class DraftRestartView(LeadView):
    @extend_schema(request=None, responses=DraftRequestSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Have the missing drafts of a failed order written."""
        found = get_object_or_404(_orders(), pk=pk)
        self.membership(found.project_id)
        drafts.restart(request=found, by=self.user)
        return Response(DraftRequestSerializer(_orders().get(pk=pk)).data)


class DraftsView(LeadView):
    pagination_class = NewestFirst

    @extend_schema(
        parameters=[
            OpenApiParameter("state", enum=Draft.State.values),
            OpenApiParameter("kind", enum=DraftRequest.Kind.values),
            OpenApiParameter("request", int),
        ],
        responses=DraftSerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        """List drafts, newest first."""
        rows = _rows().filter(request__project__in=self.projects())
        for name in ("state", "kind", "request"):
            if value := request.query_params.get(name):
                rows = rows.filter(**{_FILTERS[name]: self._clean(name, value)})
        return paginated(rows, DraftSerializer, request, self)

    def _clean(self, name: str, value: str) -> str:
        field: serializers.Field[Any, Any, Any, Any]
        if name == "request":
            field = serializers.RegexField(NUMBER)
        else:
            choices = Draft.State if name == "state" else DraftRequest.Kind
            field = serializers.ChoiceField(choices=choices.choices)
        return str(field.run_validation(value))


_FILTERS = {"state": "state", "kind": "request__kind", "request": "request"}


class DraftView(DraftLeadView):
    @extend_schema(responses=DraftSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Fetch one draft."""
        return Response(DraftSerializer(self.draft(pk)).data)


class DraftApproveView(DraftLeadView):
    class Input(Body):
        messages = serializers.ListField(
            child=serializers.DictField(),
            required=False,
            help_text="What a new prompt shall say instead.",
        )
        text = serializers.CharField(
            required=False,
            max_length=MAX_CORRECTION,
            trim_whitespace=False,
            help_text="What an answer shall say instead.",
        )
        campaign = serializers.IntegerField(
            required=False, allow_null=True, help_text="Where it goes to be judged."
        )

    @extend_schema(request=Input, responses=DraftSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Approve a draft, as it is or edited; 409 where somebody decided before."""
        draft = self.draft(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        values = data.validated_data
        ours, other = "messages", "text"
        if draft.request.kind == DraftRequest.Kind.RESPONSE:
            ours, other = other, ours
        if other in values:
            raise serializers.ValidationError(f"{other}: this draft is edited by “{ours}”.")
        done = drafts.approve(
            draft=draft,
            by=self.user,
            instead=values.get(ours),
            campaign=self.campaign_named(values.get("campaign"), draft.request.project),
        )
        return Response(DraftSerializer(_rows().get(pk=done.pk)).data)


class DraftRejectView(DraftLeadView):
    class Input(Body):
        why = serializers.CharField(max_length=drafts.MAX_REASON, allow_blank=True, default="")

    @extend_schema(request=Input, responses=DraftSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Reject a draft; 409 where somebody decided before."""
        draft = self.draft(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        done = drafts.reject(draft=draft, by=self.user, why=data.validated_data["why"])
        return Response(DraftSerializer(_rows().get(pk=done.pk)).data)


class DraftUndoView(DraftLeadView):
    @extend_schema(request=None, responses=DraftSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Take back an own decision on a draft; 409 where it is too late or of somebody else."""
        done = drafts_undo.undo(draft=self.draft(pk), by=self.user)
        return Response(DraftSerializer(_rows().get(pk=done.pk)).data)


class CampaignDraftsView(LeadView):
    class Input(Body):
        drafts = serializers.ListField(
            child=serializers.IntegerField(), min_length=1, max_length=10_000
        )

    class Output(serializers.Serializer[Any]):
        items = serializers.IntegerField(help_text="Items made.")
        already = serializers.IntegerField(help_text="Prompts that the campaign had.")

    @extend_schema(request=Input, responses={201: Output})
    def post(self, request: Request, pk: int) -> Response:
        """Put approved answers into a campaign; its sources write the others."""
        campaign = self.campaign(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        rows = Draft.objects.of(campaign.project)
        chosen = list(rows.filter(pk__in=data.validated_data["drafts"]))
        if len(chosen) != len(set(data.validated_data["drafts"])):
            raise serializers.ValidationError("drafts: one of them is not in this project.")
        sent = drafts.place(campaign=campaign, drafts=chosen, by=self.user)
        return Response({"items": sent.items, "already": sent.already}, status=201)
