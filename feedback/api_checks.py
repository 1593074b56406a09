"""REST: gold, decisions on disputed items, the trust test's settings, and pauses."""

from __future__ import annotations

from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import Role, Scope, User
from accounts.serializers import Body
from feedback import adjudication, dealing, gold, pauses
from feedback.api import OneCampaignView
from feedback.models import LEAST_EVERY, Campaign, Decision, Item, Pause


class KnownAnswerInput(Body):
    """An answer that names responses by position, from 0."""

    ranking = serializers.ListField(
        child=serializers.ListField(child=serializers.IntegerField(min_value=0)),
        required=False,
        help_text="Groups of positions, best first; those of one group are not told apart.",
    )
    thumb = serializers.ChoiceField(choices=[1, -1], required=False)
    ratings = serializers.DictField(
        child=serializers.DictField(child=serializers.IntegerField(min_value=1)),
        required=False,
        help_text="Where responses are rated: levels by position and scale, {“0”: {“tone”: 4}}.",
    )


class GoldAnswerInput(KnownAnswerInput):
    """A known answer; of levels, how far off still counts as right."""

    within = serializers.IntegerField(
        min_value=0,
        default=None,
        allow_null=True,
        help_text=f"Of ratings; {gold.WITHIN} if absent.",
    )


class GoldSerializer(serializers.ModelSerializer[Item]):
    met = serializers.IntegerField(default=0, help_text="How many annotators judged it.")

    class Meta:
        model = Item
        fields = ["id", "campaign", "prompt", "repeat_of", "gold_answer", "met", "created_at"]


class DecisionSerializer(serializers.ModelSerializer[Decision]):
    by = serializers.CharField(source="by.username")

    class Meta:
        model = Decision
        fields = ["id", "item", "answer", "why", "by", "at"]


class PauseSerializer(serializers.ModelSerializer[Pause]):
    annotator = serializers.CharField(source="annotator.username")
    started_by = serializers.CharField(source="started_by.username", default=None)
    ended_by = serializers.CharField(source="ended_by.username", default=None)

    class Meta:
        model = Pause
        fields = [
            "id",
            "campaign",
            "annotator",
            "why",
            "figures",
            "started_at",
            "started_by",
            "ended_at",
            "ended_by",
            "ended_why",
        ]


class LeadView(OneCampaignView):
    """An operation of leads; what it changes needs the scope to manage."""

    role, write_scope = Role.LEAD, Scope.MANAGE

    def item(self, pk: int) -> Item:
        item = get_object_or_404(Item.objects.select_related("campaign__project"), pk=pk)
        self.membership(item.campaign.project_id)
        return item


class ChecksView(LeadView):
    class Input(Body):
        gold_every = serializers.IntegerField(min_value=0, max_value=1000)
        repeat_every = serializers.IntegerField(min_value=0, max_value=1000)
        repeat_after = serializers.IntegerField(min_value=1, max_value=1000)
        trust = serializers.ChoiceField(choices=Campaign.Trust.choices)

        def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
            for name in ("gold_every", "repeat_every"):
                if 0 < attrs[name] < LEAST_EVERY:
                    raise serializers.ValidationError(f"{name}: 0, or {LEAST_EVERY} or more.")
            return attrs

    def values(self, campaign: Campaign) -> Response:
        return Response({name: getattr(campaign, str(name)) for name in self.Input().fields})

    @extend_schema(responses=Input)
    def get(self, request: Request, pk: int) -> Response:
        """Say how often gold and repeats come, and what follows from the trust test."""
        return self.values(self.campaign(pk))

    @extend_schema(request=Input, responses=Input)
    def post(self, request: Request, pk: int) -> Response:
        """Set how often gold and repeats come, and what follows from the trust test."""
        campaign = self.campaign(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        values = data.validated_data
        policy = Campaign.Trust(values["trust"])
        gold.set_checks(campaign=campaign, by=self.user, **values | {"trust": policy})
        return self.values(campaign)


class GoldView(LeadView):
    class Input(Body):
        prompt = serializers.JSONField(help_text="A text, or a list of {role, content}.")
        responses = serializers.ListField(child=serializers.CharField(), max_length=9)
        answer = GoldAnswerInput()

    @extend_schema(responses=GoldSerializer(many=True))
    def get(self, request: Request, pk: int) -> Response:
        """List a campaign's gold items with their known answers."""
        return Response(GoldSerializer(gold.gold_items(self.campaign(pk)), many=True).data)

    @extend_schema(request=Input, responses={201: GoldSerializer})
    def post(self, request: Request, pk: int) -> Response:
        """Add a gold item with texts of its own."""
        campaign = self.campaign(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        item = gold.add_gold(campaign=campaign, by=self.user, **data.validated_data)
        return Response(GoldSerializer(item).data, status=201)


class ItemGoldView(LeadView):
    @extend_schema(request=GoldAnswerInput, responses=GoldSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Make an item gold, or give a gold item another answer."""
        found = self.item(pk)
        data = GoldAnswerInput(data=request.data)
        data.is_valid(raise_exception=True)
        item = gold.make_gold(item=found, answer=data.validated_data, by=self.user)
        return Response(GoldSerializer(item).data)


class DecisionsView(LeadView):
    class Input(KnownAnswerInput):
        why = serializers.CharField(max_length=1000)

    @extend_schema(responses=DecisionSerializer(many=True))
    def get(self, request: Request, pk: int) -> Response:
        """List the decisions on an item, newest first; the first one stands."""
        rows = self.item(pk).decisions.select_related("by")
        return Response(DecisionSerializer(rows, many=True).data)

    @extend_schema(request=Input, responses={201: DecisionSerializer})
    def post(self, request: Request, pk: int) -> Response:
        """Decide a disputed item; its judgements stay."""
        item = self.item(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        answer = dict(data.validated_data)
        why = answer.pop("why")
        decision = adjudication.decide(item=item, answer=answer, why=why, by=self.user)
        return Response(DecisionSerializer(decision).data, status=201)


class PriorityView(LeadView):
    class Input(Body):
        priority = serializers.IntegerField(
            min_value=-dealing.MOST_PRIORITY, max_value=dealing.MOST_PRIORITY
        )

    @extend_schema(request=Input, responses={204: None})
    def post(self, request: Request, pk: int) -> Response:
        """Let an item go out before those of a lower priority."""
        item = self.item(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        dealing.prioritise(item=item, by=self.user, **data.validated_data)
        return Response(status=204)


class AssignView(LeadView):
    class Input(Body):
        annotators = serializers.ListField(child=serializers.CharField(), min_length=1)

    @extend_schema(request=Input, responses={204: None})
    def post(self, request: Request, pk: int) -> Response:
        """Keep an item's free slots for the people named, and for nobody else."""
        item = self.item(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        names = data.validated_data["annotators"]
        members = User.objects.filter(memberships__project=item.campaign.project_id)
        found = {user.username: user for user in members.filter(username__in=names)}
        if missing := [name for name in names if name not in found]:
            raise serializers.ValidationError(f"annotators: {missing[0]} is not a member.")
        dealing.assign(item=item, annotators=[found[name] for name in names], by=self.user)
        return Response(status=204)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, pk: int) -> Response:
        """Give what named people have not taken up to anybody."""
        dealing.release(item=self.item(pk), by=self.user)
        return Response(status=204)


class PausesView(LeadView):
    class Input(Body):
        annotator = serializers.CharField(help_text="A username.")
        why = serializers.CharField(max_length=500)

    @extend_schema(responses=PauseSerializer(many=True))
    def get(self, request: Request, pk: int) -> Response:
        """List who is and was paused in a campaign, newest first."""
        rows = self.campaign(pk).pauses.select_related("annotator", "started_by", "ended_by")
        return Response(PauseSerializer(rows, many=True).data)

    @extend_schema(request=Input, responses={201: PauseSerializer})
    def post(self, request: Request, pk: int) -> Response:
        """Pause an annotator in a campaign; what they hold goes to somebody else."""
        campaign = self.campaign(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        values = data.validated_data
        members = User.objects.filter(memberships__project=campaign.project_id)
        annotator = get_object_or_404(members, username=values["annotator"])
        paused = pauses.pause(
            campaign=campaign, annotator=annotator, why=values["why"], by=self.user
        )
        paused.refresh_from_db()
        return Response(PauseSerializer(paused).data, status=201)


class LiftView(LeadView):
    class Input(Body):
        why = serializers.CharField(max_length=500)

    @extend_schema(request=Input, responses=PauseSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """End a pause with a reason."""
        rows = Pause.objects.select_related("campaign__project", "annotator")
        paused = get_object_or_404(rows, pk=pk)
        self.membership(paused.campaign.project_id)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        pauses.lift(paused=paused, by=self.user, why=data.validated_data["why"])
        paused.refresh_from_db()
        return Response(PauseSerializer(paused).data)
