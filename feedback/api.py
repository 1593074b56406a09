"""REST: prompts, campaigns, tasks, judgements, and feedback on completions."""

from __future__ import annotations

from typing import Any, TypeVar

from django.conf import settings
from django.db.models import Q
from django.http import Http404
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView
from accounts.models import Role, Scope
from accounts.pages import whole
from accounts.pagination import NewestFirst, filtered, paginated
from accounts.serializers import Body, FiniteField, SharedFieldsSerializer
from feedback import assignment, extras, judgements, live, obstacles, services
from feedback.documents import MAX_DOCUMENTS, MAX_TEXT, MAX_TITLE
from feedback.models import (
    Campaign,
    CompletionFeedback,
    Judgement,
    Prompt,
    SkipReason,
    Slot,
)
from inference.models import Completion

T = TypeVar("T")


class DocumentSerializer(serializers.Serializer[Any]):
    """A text that the model is given to read before it answers."""

    title = serializers.CharField(max_length=MAX_TITLE)
    text = serializers.CharField(max_length=MAX_TEXT, trim_whitespace=False)


class PromptSerializer(serializers.ModelSerializer[Prompt]):
    documents = DocumentSerializer(many=True, read_only=True)
    draft = serializers.IntegerField(
        source="draft.pk", default=None, help_text="The draft that it was, if a model wrote it."
    )

    class Meta:
        model = Prompt
        fields = ["id", "messages", "documents", "digest", "tags", "draft", "created_at"]


class PromptsView(ProjectAPIView):
    role, write_scope = Role.LEAD, Scope.MANAGE
    pagination_class = NewestFirst

    class Input(Body):
        prompts = serializers.ListField(
            child=serializers.JSONField(),
            min_length=1,
            max_length=10_000,
            help_text="Texts, or conversations as lists of {role, content}.",
        )
        tags = serializers.ListField(child=serializers.CharField(max_length=60), default=list)
        documents = DocumentSerializer(
            many=True,
            default=list,
            help_text=f"At most {MAX_DOCUMENTS}, given with each of the prompts in a system turn.",
        )

    class Filters(Body):
        tag = serializers.CharField(source="tags__contains", required=False)
        digest = serializers.CharField(required=False)

        def validate_tag(self, value: str) -> list[str]:
            return [value]

    @extend_schema(parameters=[Filters], responses=PromptSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List prompts, newest first."""
        rows = Prompt.objects.filter(project__in=self.projects()).select_related("draft")
        return paginated(filtered(rows, self.Filters, request), PromptSerializer, request, self)

    @extend_schema(request=Input, responses={201: PromptSerializer(many=True)})
    def post(self, request: Request) -> Response:
        """Add prompts; one that is there already is returned, not doubled."""
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        prompts = services.add_prompts(project=self.project(), **data.validated_data)
        return Response(PromptSerializer(prompts, many=True).data, status=201)


class LabelInput(Body):
    """A choice by name; the key is made from the label where it is left out."""

    key = serializers.CharField(max_length=40, required=False)
    label = serializers.CharField(max_length=80)  # type: ignore[assignment]


class ScaleInput(LabelInput):
    """A Likert scale from 1 to ``levels``."""

    low = serializers.CharField(max_length=80, allow_blank=True, default="")
    high = serializers.CharField(max_length=80, allow_blank=True, default="")
    levels = serializers.IntegerField(min_value=2, max_value=7, default=5)


class ExtrasInput(Body):
    """What a campaign asks beside its kind."""

    preset = serializers.ChoiceField(
        choices=list(extras.PRESETS), required=False, help_text="Scales before those of “ratings”."
    )
    ratings = ScaleInput(many=True, default=list)
    safety = LabelInput(many=True, default=list, help_text="Labels, one for each response.")
    reasons = LabelInput(many=True, default=list)
    rationale = serializers.ChoiceField(
        choices=extras.Wanted.choices, default=extras.Wanted.OPTIONAL.value
    )
    correction = serializers.ChoiceField(
        choices=extras.Wanted.choices, default=extras.Wanted.OFF.value
    )


class ExtrasOutput(serializers.Serializer[Any]):
    """What a campaign asks beside its kind, keys filled in."""

    ratings = ScaleInput(many=True)
    safety = LabelInput(many=True)
    reasons = LabelInput(many=True)
    rationale = serializers.CharField()
    correction = serializers.CharField()


class CampaignSerializer(serializers.ModelSerializer[Campaign]):
    project = serializers.CharField(source="project.slug")
    extras = serializers.SerializerMethodField()
    slots = serializers.SerializerMethodField()
    filled = serializers.SerializerMethodField()

    class Meta:
        model = Campaign
        fields = [
            "id",
            "project",
            "name",
            "kind",
            "extras",
            "instructions",
            "state",
            "reason",
            "judgements_per_item",
            "responses_per_item",
            "queue_order",
            "control_percent",
            "generated",
            "to_generate",
            "slots",
            "filled",
            "created_at",
        ]

    @extend_schema_field(ExtrasOutput)
    def get_extras(self, campaign: Campaign) -> dict[str, Any]:
        """Return what is asked beside the kind."""
        return extras.stored(campaign.extras).as_dict()

    def get_slots(self, campaign: Campaign) -> int | None:
        """Return how many judgements it takes, where the progress was counted."""
        return getattr(campaign, "slot_count", None)

    def get_filled(self, campaign: Campaign) -> int | None:
        """Return how many judgements there are, where the progress was counted."""
        return getattr(campaign, "filled_count", None)


class CampaignsView(ProjectAPIView):
    write_scope, write_role = Scope.MANAGE, Role.LEAD
    pagination_class = NewestFirst

    class Input(Body):
        class Source(Body):
            version = serializers.IntegerField(help_text="The id of a version.")
            temperature = FiniteField(default=1.0)
            top_p = FiniteField(default=1.0)
            max_tokens = serializers.IntegerField(default=128)

        name = serializers.CharField(max_length=120)
        kind = serializers.ChoiceField(choices=Campaign.Kind.choices)
        prompts = serializers.ListField(child=serializers.IntegerField(), min_length=1)
        sources = Source(many=True)
        judgements_per_item = serializers.IntegerField(min_value=1, max_value=50, default=3)
        responses_per_item = serializers.IntegerField(min_value=1, max_value=9, default=4)
        extras = ExtrasInput(required=False)
        instructions = serializers.CharField(max_length=20_000, allow_blank=True, default="")
        seed = serializers.IntegerField(min_value=0, max_value=2**31 - 1, default=0)
        queue_order = serializers.ChoiceField(
            choices=Campaign.Order.choices, default=Campaign.Order.LEAST_JUDGED.value
        )
        approved_drafts = serializers.BooleanField(
            default=False, help_text="Answers that were drafted and approved stand among them."
        )

    class Filters(Body):
        state = serializers.ChoiceField(choices=Campaign.State.choices, required=False)
        kind = serializers.ChoiceField(choices=Campaign.Kind.choices, required=False)

    @extend_schema(parameters=[Filters], responses=CampaignSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List campaigns with their progress, newest first."""
        rows = Campaign.objects.filter(project__in=self.projects()).select_related("project")
        rows = filtered(rows.with_progress(), self.Filters, request)
        return paginated(rows, CampaignSerializer, request, self)

    @extend_schema(request=Input, responses={201: CampaignSerializer})
    def post(self, request: Request) -> Response:
        """Create a campaign and have its responses generated."""
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        values = dict(data.validated_data)
        project = self.project()
        found = Prompt.objects.filter(project=project).in_bulk(values.pop("prompts"))
        if len(found) != len(set(data.validated_data["prompts"])):
            raise serializers.ValidationError("prompts: one of them is not in this project.")
        campaign = services.create_campaign(
            project=project,
            by=self.user,
            prompts=list(found.values()),
            **values | {"kind": Campaign.Kind(values["kind"])},
        )
        return Response(CampaignSerializer(campaign).data, status=201)


class OneCampaignView(ProjectAPIView):
    """An operation on one campaign of the caller's projects."""

    def campaign(self, pk: int) -> Campaign:
        rows = Campaign.objects.select_related("project")
        campaign = get_object_or_404(rows, pk=pk)
        self.membership(campaign.project_id)
        return campaign


class CampaignView(OneCampaignView):
    @extend_schema(responses=CampaignSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Fetch one campaign with its progress."""
        self.campaign(pk)
        rows = Campaign.objects.select_related("project").with_progress()
        return Response(CampaignSerializer(rows.get(pk=pk)).data)


class CampaignStateView(OneCampaignView):
    scope, role = Scope.MANAGE, Role.LEAD

    class Input(Body):
        state = serializers.ChoiceField(choices=["open", "paused", "closed"])

    @extend_schema(request=Input, responses=CampaignSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Open, pause or close a campaign."""
        campaign = self.campaign(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        state = Campaign.State(data.validated_data["state"])
        services.set_campaign_state(campaign=campaign, state=state, by=self.user)
        campaign.refresh_from_db()
        return Response(CampaignSerializer(campaign).data)


class CampaignCompletionsView(OneCampaignView):
    scope, role = Scope.MANAGE, Role.LEAD

    class Input(Body):
        completions = serializers.ListField(
            child=serializers.UUIDField(), min_length=1, max_length=live.MAX_SENT
        )

    class Output(serializers.Serializer[Any]):
        items = serializers.IntegerField(help_text="Items made.")
        already = serializers.IntegerField(help_text="Prompts that the campaign had.")

    @extend_schema(request=Input, responses={201: Output})
    def post(self, request: Request, pk: int) -> Response:
        """Send answers from live use into a campaign; its sources write the others."""
        campaign = self.campaign(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        chosen = set(data.validated_data["completions"])
        found = list(Completion.objects.filter(project=campaign.project_id, pk__in=chosen))
        if len(found) != len(chosen):
            raise serializers.ValidationError("completions: one of them is not in this project.")
        sent = live.send_to_campaign(campaign=campaign, completions=found, by=self.user)
        return Response({"items": sent.items, "already": sent.already}, status=201)


def task_json(task: assignment.Task, campaign: Campaign) -> dict[str, Any]:
    """Return what a judging program needs; nothing in it tells which model wrote what."""
    return {
        "slot": task.slot.pk,
        "token": task.slot.token,
        "client_id": str(task.client_id),
        "lease_seconds": settings.LEASE_SECONDS,
        "campaign": campaign.pk,
        "kind": campaign.kind,
        "extras": extras.stored(campaign.extras).as_dict(),
        "messages": task.messages,
        "documents": task.documents,
        "responses": [{"id": r.pk, "text": r.text} for r in task.responses],
    }


class TaskOutput(serializers.Serializer[Any]):
    """A task as a program sees it."""

    class ResponseOutput(serializers.Serializer[Any]):
        id = serializers.IntegerField()
        text = serializers.CharField()

    slot = serializers.IntegerField()
    token = serializers.IntegerField()
    client_id = serializers.UUIDField()
    lease_seconds = serializers.IntegerField()
    campaign = serializers.IntegerField()
    kind = serializers.CharField()
    extras = ExtrasOutput()
    messages = serializers.ListField(child=serializers.DictField())
    documents = DocumentSerializer(many=True, help_text="They stand in the messages, too.")
    responses = ResponseOutput(many=True)


class NextTaskView(OneCampaignView):
    scope = Scope.JUDGE

    @extend_schema(request=None, responses={200: TaskOutput, 204: None})
    def post(self, request: Request, pk: int) -> Response:
        """Take the next task, or get the one in hand again; 204 when nothing is left for you."""
        campaign = self.campaign(pk)
        task = assignment.claim(campaign=campaign, annotator=self.user)
        if task is None:
            obstacles.refuse(campaign=campaign, annotator=self.user)
            return Response(status=status.HTTP_204_NO_CONTENT)
        return Response(task_json(task, campaign))


class UndoView(OneCampaignView):
    scope = Scope.JUDGE

    @extend_schema(request=None, responses=TaskOutput)
    def post(self, request: Request, pk: int) -> Response:
        """Take back your last judgement here and hold its task again."""
        campaign = self.campaign(pk)
        task = assignment.undo(campaign=campaign, annotator=self.user)
        return Response(task_json(task, campaign))


class JudgementSerializer(serializers.ModelSerializer[Judgement]):
    prompt = serializers.IntegerField(source="item.prompt_id")
    annotator = serializers.CharField(source="annotator.username")

    class Meta:
        model = Judgement
        fields = [
            "id",
            "client_id",
            "campaign",
            "item",
            "prompt",
            "annotator",
            "annotator_id",
            "ranking",
            "thumb",
            "strength",
            "both_bad",
            "comment",
            "ratings",
            "safety",
            "reasons",
            "correction",
            "corrected",
            "shown",
            "seconds",
            "created_at",
            "retracted_at",
        ]


def _by_response(value: dict[str, T]) -> dict[int, T]:
    try:
        return {int(response): said for response, said in value.items()}
    except ValueError:
        raise serializers.ValidationError("The keys are ids of responses.") from None


class AnswerInput(SharedFieldsSerializer):
    """A judgement as a program or a page sends it; the service checks what it says."""

    slot = serializers.IntegerField(min_value=1)
    token = serializers.IntegerField(min_value=0)
    client_id = serializers.UUIDField()
    ranking = serializers.ListField(
        child=serializers.ListField(child=serializers.IntegerField()),
        required=False,
        allow_null=True,
        help_text="Groups of response ids, best first; a group of several is a tie.",
    )
    thumb = serializers.ChoiceField(choices=[1, -1], required=False, allow_null=True)
    strength = serializers.IntegerField(required=False, allow_null=True)
    both_bad = serializers.BooleanField(default=False)
    comment = serializers.CharField(allow_blank=True, default="", trim_whitespace=False)
    ratings = serializers.DictField(
        child=serializers.DictField(child=serializers.IntegerField()),
        default=dict,
        help_text="Levels by response id, then by the key of the scale.",
    )
    safety = serializers.DictField(
        child=serializers.CharField(), default=dict, help_text="A label by response id."
    )
    reasons = serializers.ListField(child=serializers.CharField(), default=list)
    correction = serializers.CharField(
        allow_blank=True,
        default="",
        trim_whitespace=False,
        help_text="What the response “corrected” should have said.",
    )
    corrected = serializers.IntegerField(required=False, allow_null=True)
    seconds = FiniteField(min_value=0, required=False, allow_null=True)

    def validate_ratings(self, value: dict[str, dict[str, int]]) -> dict[int, dict[str, int]]:
        return _by_response(value)

    def validate_safety(self, value: dict[str, str]) -> dict[int, str]:
        return _by_response(value)

    def answer(self) -> assignment.Answer:
        """Return the validated content as the service takes it."""
        values = dict(self.validated_data)
        for key in ("slot", "token", "client_id"):
            values.pop(key)
        values.pop("next", None)
        return assignment.Answer(**values)


class JudgementsView(ProjectAPIView):
    write_scope = Scope.JUDGE
    pagination_class = NewestFirst

    class Input(AnswerInput):
        next = serializers.BooleanField(
            default=False, help_text="Bring the next task in the same answer."
        )

    class Output(serializers.Serializer[Any]):
        id = serializers.IntegerField()
        client_id = serializers.UUIDField()
        next = TaskOutput(allow_null=True)

    @extend_schema(
        parameters=[
            OpenApiParameter("campaign", int),
            OpenApiParameter("annotator", str),
            OpenApiParameter("prompt", str, description="A text in the conversation."),
            OpenApiParameter("kind", str, enum=list(judgements.KINDS), description="Leads only."),
            OpenApiParameter("says", str, description="As on the page of a campaign’s judgements."),
        ],
        responses=JudgementSerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        """List judgements, newest first: your own, or all of them as a lead."""
        names = ("annotator", "prompt", "kind", "says")
        asked = {name: request.query_params.get(name, "").replace("\x00", "") for name in names}
        mine = Q(annotator=self.user, campaign__project__in=self.projects())
        led = Q(campaign__project__in=self.projects(Role.LEAD))
        # Nobody may find out which of their own were gold.
        rows = Judgement.objects.filter(led if asked["kind"] else led | mine)
        rows = rows.select_related("item", "annotator")
        campaign = None
        if number := request.query_params.get("campaign"):
            found = Campaign.objects.filter(project__in=self.projects(), pk=whole(number) or 0)
            campaign = found.first()
            rows = rows if campaign else rows.none()
        rows = judgements.search(
            rows,
            campaign=campaign,
            kind=asked["kind"],
            says=asked["says"],
            annotator=asked["annotator"],
            prompt=asked["prompt"],
        )
        return paginated(rows, JudgementSerializer, request, self)

    @extend_schema(request=Input, responses={201: Output})
    def post(self, request: Request) -> Response:
        """Submit a judgement; the same client_id again is answered with the stored one."""
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        values = data.validated_data
        place = assignment.find_place(
            slot_id=values["slot"], client_id=values["client_id"], annotator=self.user
        )
        if place is None:
            raise Http404
        self.admit(place.membership)
        judgement = assignment.submit(
            slot_id=values["slot"],
            token=values["token"],
            client_id=values["client_id"],
            annotator=self.user,
            answer=data.answer(),
            place=place,
        )
        following = None
        if values["next"]:
            task = assignment.claim(campaign=place.campaign, annotator=self.user, judged=place.role)
            following = task_json(task, place.campaign) if task is not None else None
        body = {
            "id": judgement.pk,
            "client_id": str(judgement.client_id),
            "next": following,
        }
        return Response(body, status=status.HTTP_201_CREATED)


class SlotInput(Body):
    token = serializers.IntegerField(min_value=0)


class OneSlotView(ProjectAPIView):
    """An operation on a slot that the caller holds."""

    scope = Scope.JUDGE

    def check_slot(self, pk: int) -> None:
        slot = get_object_or_404(Slot.objects.select_related("campaign"), pk=pk)
        self.membership(slot.campaign.project_id)


class RenewView(OneSlotView):
    @extend_schema(request=SlotInput, responses={204: None})
    def post(self, request: Request, pk: int) -> Response:
        """Extend the lease of a task in hand."""
        self.check_slot(pk)
        data = SlotInput(data=request.data)
        data.is_valid(raise_exception=True)
        assignment.renew(slot_id=pk, token=data.validated_data["token"], annotator=self.user)
        return Response(status=status.HTTP_204_NO_CONTENT)


class SkipView(OneSlotView):
    class Input(SlotInput):
        reason = serializers.ChoiceField(choices=SkipReason.choices)
        note = serializers.CharField(max_length=500, allow_blank=True, default="")

    @extend_schema(request=Input, responses={204: None})
    def post(self, request: Request, pk: int) -> Response:
        """Give a task back; its item does not come to you again."""
        self.check_slot(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        values = data.validated_data
        assignment.skip(
            slot_id=pk,
            token=values["token"],
            annotator=self.user,
            reason=SkipReason(values["reason"]),
            note=values["note"],
        )
        return Response(status=status.HTTP_204_NO_CONTENT)


class FeedbackSerializer(serializers.ModelSerializer[CompletionFeedback]):
    version = serializers.IntegerField(source="completion.version_id")
    version_name = serializers.CharField(source="completion.version.name")
    user = serializers.CharField(source="user.username", default=None)

    class Meta:
        model = CompletionFeedback
        fields = [
            "id",
            "completion",
            "client_id",
            "version",
            "version_name",
            "user",
            "thumb",
            "comment",
            "correction",
            "complaint",
            "created_at",
        ]


class CompletionFeedbackView(ProjectAPIView):
    scope = Scope.CHAT

    class Input(Body):
        thumb = serializers.ChoiceField(choices=[1, -1], required=False, allow_null=True)
        comment = serializers.CharField(allow_blank=True, default="", trim_whitespace=False)
        correction = serializers.CharField(allow_blank=True, default="", trim_whitespace=False)
        complaint = serializers.BooleanField(default=False)
        client_id = serializers.UUIDField(required=False)

    @extend_schema(request=Input, responses={201: FeedbackSerializer})
    def post(self, request: Request, pk: str) -> Response:
        """Say what you think of an answer: a thumb, a comment, a correction, a complaint."""
        completion = get_object_or_404(Completion.objects.select_related("version"), pk=pk)
        in_use = Completion.objects.asked_in_use().filter(pk=pk)
        if not self.membership(completion.project_id).may(Role.LEAD) and not in_use.exists():
            raise Http404  # its version would tell which model wrote what they judge
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        feedback = services.give_feedback(
            completion=completion, user=self.user, **data.validated_data
        )
        return Response(FeedbackSerializer(feedback).data, status=status.HTTP_201_CREATED)


class FeedbackListView(ProjectAPIView):
    role = Role.LEAD
    pagination_class = NewestFirst

    class Filters(Body):
        thumb = serializers.ChoiceField(choices=[1, -1], required=False)
        complaint = serializers.BooleanField(required=False)
        completion = serializers.UUIDField(required=False)
        version = serializers.IntegerField(source="completion__version", required=False)

    @extend_schema(parameters=[Filters], responses=FeedbackSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List feedback on completions, newest first."""
        rows = CompletionFeedback.objects.filter(completion__project__in=self.projects())
        rows = filtered(rows.select_related("completion__version", "user"), self.Filters, request)
        return paginated(rows, FeedbackSerializer, request, self)
