"""REST: the code book's versions and their confirmation, and calibration sessions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView
from accounts.models import Scope, User
from accounts.serializers import Body
from feedback import calibration, code_books
from feedback.api_checks import LeadView
from feedback.models import CalibrationNote, CalibrationSession, CodeBook, Item


class CodeBookSerializer(serializers.ModelSerializer[CodeBook]):
    by = serializers.CharField(source="by.username", default=None)

    class Meta:
        model = CodeBook
        fields = ["id", "campaign", "number", "text", "changed", "to_confirm", "by", "at"]


class CodeBooksView(LeadView):
    class Input(Body):
        text = serializers.CharField(max_length=code_books.MAX_CODE_BOOK)
        changed = serializers.CharField(max_length=300, allow_blank=True, default="")
        to_confirm = serializers.BooleanField(default=True)

    @extend_schema(responses=CodeBookSerializer(many=True))
    def get(self, request: Request, pk: int) -> Response:
        """List a campaign's code book, newest version first."""
        rows = self.campaign(pk).code_books.select_related("by")
        return Response(CodeBookSerializer(rows, many=True).data)

    @extend_schema(request=Input, responses={201: CodeBookSerializer})
    def post(self, request: Request, pk: int) -> Response:
        """Publish a new version."""
        campaign = self.campaign(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        book = code_books.publish(campaign=campaign, by=self.user, **data.validated_data)
        return Response(CodeBookSerializer(book).data, status=201)


class ConfirmView(ProjectAPIView):
    scope = Scope.JUDGE

    @extend_schema(request=None, responses=CodeBookSerializer)
    def post(self, request: Request, pk: int) -> Response:
        """Say that you have read this version of the code book."""
        book = get_object_or_404(CodeBook.objects.select_related("campaign", "by"), pk=pk)
        self.membership(book.campaign.project_id)
        code_books.confirm(code_book=book, annotator=self.user)
        return Response(CodeBookSerializer(book).data)


class SessionSerializer(serializers.ModelSerializer[CalibrationSession]):
    class Meta:
        model = CalibrationSession
        fields = ["id", "campaign", "name", "at"]


class NoteSerializer(serializers.ModelSerializer[CalibrationNote]):
    by = serializers.CharField(source="by.username")

    class Meta:
        model = CalibrationNote
        fields = ["id", "item", "text", "by", "at"]


class CalibrationsView(LeadView):
    class Input(Body):
        name = serializers.CharField(max_length=120)
        items = serializers.ListField(child=serializers.IntegerField(), min_length=1)
        members = serializers.ListField(child=serializers.CharField(), min_length=2)

    @extend_schema(responses=SessionSerializer(many=True))
    def get(self, request: Request, pk: int) -> Response:
        """List a campaign's calibration sessions, newest first."""
        return Response(SessionSerializer(self.campaign(pk).calibrations.all(), many=True).data)

    @extend_schema(request=Input, responses={201: SessionSerializer})
    def post(self, request: Request, pk: int) -> Response:
        """Start a session: everybody named judges a copy of each item."""
        campaign = self.campaign(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        values = data.validated_data
        session = calibration.start(
            campaign=campaign,
            name=values["name"],
            items=list(Item.objects.filter(campaign=campaign, pk__in=values["items"])),
            members=list(User.objects.filter(username__in=values["members"])),
            by=self.user,
        )
        return Response(SessionSerializer(session).data, status=201)


class _SessionView(LeadView):
    def session(self, pk: int) -> CalibrationSession:
        session = get_object_or_404(CalibrationSession.objects.select_related("campaign"), pk=pk)
        self.membership(session.campaign.project_id)
        return session


class CalibrationView(_SessionView):
    class Output(serializers.Serializer[Any]):
        class ItemOutput(serializers.Serializer[Any]):
            item = serializers.IntegerField()
            judged = serializers.IntegerField()
            asked = serializers.IntegerField()
            agreement = serializers.FloatField(allow_null=True)

        class PairOutput(serializers.Serializer[Any]):
            one = serializers.CharField()
            other = serializers.CharField()
            agreement = serializers.DictField()

        alpha = serializers.FloatField(allow_null=True)
        items = ItemOutput(many=True)
        pairs = PairOutput(many=True)
        notes = NoteSerializer(many=True)

    @extend_schema(responses=Output)
    def get(self, request: Request, pk: int) -> Response:
        """Say how far people agree in a session, by item and pair, with the notes."""
        session = self.session(pk)
        found = calibration.result(session)
        return Response(
            {
                "alpha": found.alpha,
                "items": [
                    {
                        "item": one.item.pk,
                        "judged": one.judged,
                        "asked": one.asked,
                        "agreement": one.agreement,
                    }
                    for one in found.items
                ],
                "pairs": [
                    {"one": one, "other": other, "agreement": asdict(shared)}
                    for one, other, shared in found.pairs
                ],
                "notes": NoteSerializer(session.notes.select_related("by"), many=True).data,
            }
        )


class SessionMembersView(_SessionView):
    class Members(serializers.Serializer[Any]):
        members = serializers.ListField(
            child=serializers.CharField(), min_length=1, help_text="Usernames."
        )

    @extend_schema(request=Members, responses=Members)
    def post(self, request: Request, pk: int) -> Response:
        """Give members who came later the session's items, too; say who had not got them."""
        session = self.session(pk)
        data = self.Members(data=request.data)
        data.is_valid(raise_exception=True)
        names = set(data.validated_data["members"])
        people = list(User.objects.filter(username__in=names))
        if len(people) != len(names):
            raise serializers.ValidationError("members: one of them is not a member.")
        new = calibration.add_members(session=session, members=people, by=self.user)
        return Response({"members": [member.username for member in new]})


class NotesView(_SessionView):
    class Input(Body):
        text = serializers.CharField(max_length=5000)
        item = serializers.IntegerField(required=False, allow_null=True)

    @extend_schema(request=Input, responses={201: None})
    def post(self, request: Request, pk: int) -> Response:
        """Keep a line of the discussion."""
        session = self.session(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        calibration.note(session=session, by=self.user, **data.validated_data)
        return Response(status=201)
