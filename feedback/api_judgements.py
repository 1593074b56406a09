"""REST: one judgement whole, and what annotators gave back."""

from __future__ import annotations

import uuid
from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView
from accounts.models import Role
from accounts.pagination import NewestFirst, paginated
from feedback import judgements
from feedback.api import JudgementSerializer, OneCampaignView
from feedback.models import ItemRole, Judgement, Skip


class WholeJudgementOutput(serializers.Serializer[judgements.Whole]):
    """A judgement with what it is about, and what that was for."""

    class ShownOutput(serializers.Serializer[judgements.Shown]):
        id = serializers.IntegerField()
        letter = serializers.CharField()
        text = serializers.CharField()
        written_by = serializers.CharField(help_text="A version, or where the text came from.")
        rank = serializers.IntegerField(help_text="From 1; 0 where nothing was ranked.")

    class ChangeOutput(serializers.Serializer[Any]):
        kind = serializers.ChoiceField(choices=["same", "del", "ins"])
        text = serializers.CharField()

    judgement = JudgementSerializer()
    messages = serializers.JSONField(source="judgement.item.prompt.messages")
    role = serializers.ChoiceField(source="judgement.item.role", choices=ItemRole.choices)
    arm = serializers.CharField(
        source="judgement.slot.arm", help_text="How the informative order handed it out."
    )
    responses = ShownOutput(source="shown", many=True, help_text="In the order shown.")
    says = serializers.CharField(help_text="As people read it: “B > A = C”.")
    known = serializers.CharField(help_text="The known answer to a gold item, in these letters.")
    first = serializers.UUIDField(
        source="first.client_id", default=None, help_text="The judgement that a repeat repeats."
    )
    changes = ChangeOutput(many=True, help_text="What the correction changes, word by word.")
    retracted_by = serializers.CharField(source="judgement.retracted_by.username", default=None)
    retracted_why = serializers.CharField(source="judgement.retracted_why")
    erased_at = serializers.DateTimeField(source="judgement.erased_at")


class JudgementView(ProjectAPIView):
    role = Role.LEAD

    @extend_schema(responses=WholeJudgementOutput)
    def get(self, request: Request, pk: uuid.UUID) -> Response:
        """Fetch one judgement by its client id, with its prompt, responses and correction."""
        rows = Judgement.objects.select_related(
            "annotator", "campaign", "item__prompt", "slot", "retracted_by"
        )
        judgement = get_object_or_404(rows, client_id=pk)
        self.membership(judgement.campaign.project_id)
        return Response(WholeJudgementOutput(judgements.whole(judgement)).data)


class SkipSerializer(serializers.ModelSerializer[Skip]):
    prompt = serializers.IntegerField(source="item.prompt_id")
    annotator = serializers.CharField(source="annotator.username")

    class Meta:
        model = Skip
        fields = ["id", "item", "prompt", "annotator", "reason", "note", "created_at"]


class SkipsView(OneCampaignView):
    role = Role.LEAD
    pagination_class = NewestFirst

    @extend_schema(responses=SkipSerializer(many=True))
    def get(self, request: Request, pk: int) -> Response:
        """List what annotators of a campaign gave back, newest first."""
        rows = Skip.objects.filter(item__campaign=self.campaign(pk))
        return paginated(rows.select_related("item", "annotator"), SkipSerializer, request, self)
