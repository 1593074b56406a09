"""REST: who belongs to a project, and in which role."""

from __future__ import annotations

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import services
from accounts.access import ProjectAPIView
from accounts.models import Membership, Role, Scope, User
from accounts.pagination import NewestFirst, filtered, paginated
from accounts.serializers import Body


class MemberSerializer(serializers.ModelSerializer[Membership]):
    id = serializers.IntegerField(
        source="user_id", help_text="The user's, as lineage and retractions name an annotator."
    )
    username = serializers.CharField(source="user.username")
    project = serializers.CharField(source="project.slug")

    class Meta:
        model = Membership
        fields = ["id", "username", "project", "role"]


class MembersView(ProjectAPIView):
    role, write_scope, write_role = Role.LEAD, Scope.MANAGE, Role.ADMIN
    pagination_class = NewestFirst

    class Filters(Body):
        role = serializers.ChoiceField(choices=Role.choices, required=False)
        username = serializers.CharField(source="user__username", required=False)

    class Input(Body):
        username = serializers.CharField(max_length=150, help_text="Of an account that exists.")
        role = serializers.ChoiceField(choices=Role.choices, default=Role.ANNOTATOR)

    @extend_schema(parameters=[Filters], responses=MemberSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List the members of your projects with their roles, newest first."""
        rows = Membership.objects.filter(project__in=self.projects())
        rows = filtered(rows.select_related("user", "project"), self.Filters, request)
        return paginated(rows, MemberSerializer, request, self)

    @extend_schema(request=Input, responses=MemberSerializer)
    def post(self, request: Request) -> Response:
        """Give somebody a role in the project, whether or not they were a member."""
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        user = User.objects.filter(username=data.validated_data["username"]).first()
        if user is None:
            raise serializers.ValidationError(
                {"username": "Nobody here has this name; manage.py add_member makes an account."}
            )
        member = services.set_member(
            project=self.project(),
            user=user,
            role=Role(data.validated_data["role"]),
            by=self.user,
        )
        return Response(MemberSerializer(member).data)


class MemberView(ProjectAPIView):
    scope, role = Scope.MANAGE, Role.ADMIN

    @extend_schema(responses={204: None})
    def delete(self, request: Request, user: int) -> Response:
        """End a membership and its tokens; what the member judged stays."""
        project = self.project()
        member = get_object_or_404(
            Membership.objects.select_related("user"), user=user, project=project
        )
        services.remove_member(project=project, user=member.user, by=self.user)
        return Response(status=status.HTTP_204_NO_CONTENT)
