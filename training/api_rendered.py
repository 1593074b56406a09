"""REST: a snapshot's row as the tokens that a base reads."""

from __future__ import annotations

from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView
from accounts.errors import Missing, ProductError
from accounts.models import Role
from accounts.pagination import query
from accounts.serializers import Body
from training import rendered
from training.forms import METHODS
from training.models import Snapshot


class PieceSerializer(serializers.Serializer[Any]):
    ids = serializers.ListField(child=serializers.IntegerField())
    text = serializers.CharField()
    special = serializers.BooleanField()


class PartSerializer(serializers.Serializer[Any]):
    pieces = PieceSerializer(many=True, help_text="What is read.")
    cut = PieceSerializer(many=True, help_text="A prompt's beginning, an answer's end.")
    opening = serializers.IntegerField(help_text="How many pieces stand in front of what is cut.")


class PreviewSerializer(serializers.Serializer[Any]):
    number = serializers.IntegerField()
    rows = serializers.IntegerField(help_text="How many rows the part has.")
    judgement_ids = serializers.ListField(child=serializers.CharField())
    prompt = PartSerializer()
    chosen = PartSerializer(allow_null=True)
    rejected = PartSerializer(allow_null=True)
    dropped = serializers.CharField(allow_blank=True, help_text="Why nothing is learnt from it.")
    truncated = serializers.BooleanField()
    limits = serializers.DictField(child=serializers.IntegerField())
    counts = serializers.DictField(
        child=serializers.IntegerField(), help_text="in, used, truncated, dropped; of all rows."
    )
    sampled = serializers.BooleanField(help_text="The counts are reckoned from the first rows.")


class SnapshotPreviewView(ProjectAPIView):
    role = Role.LEAD

    class Input(Body):
        base = serializers.CharField(default="", help_text="A base's name; the project's first.")
        method = serializers.ChoiceField(choices=METHODS, default=METHODS[0])
        part = serializers.ChoiceField(choices=["train", "heldout"], default="train")
        row = serializers.IntegerField(min_value=1, default=1)
        max_length = serializers.IntegerField(min_value=1, required=False)
        max_prompt_length = serializers.IntegerField(min_value=1, required=False)

    @extend_schema(parameters=[Input], responses=PreviewSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Show a row as the exact tokens that a base reads, and what becomes of all rows."""
        snapshot = get_object_or_404(Snapshot, pk=pk)
        self.membership(snapshot.project_id)
        if snapshot.state != Snapshot.State.READY:
            raise Missing("This snapshot has no rows to show. Ask for one whose state is ready.")
        data = self.Input(data=query(request))
        data.is_valid(raise_exception=True)
        values = dict(data.validated_data)
        name = values.pop("base")
        bases = [one for one in rendered.bases_of(snapshot) if name in ("", one.name)]
        if not bases:
            raise ProductError(f"No version of this project starts from a base “{name}”.")
        found = rendered.preview_row(
            snapshot=snapshot, base=bases[0], number=values.pop("row"), **values
        )
        return Response(found.as_dict())
