"""REST: webhooks of a project and what became of their messages."""

from __future__ import annotations

from uuid import UUID

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import webhooks
from accounts.access import ProjectAPIView
from accounts.models import Event, Role, Scope, Webhook, WebhookMessage
from accounts.pagination import NewestFirst, paginated
from accounts.serializers import Body


class WebhookSerializer(serializers.ModelSerializer[Webhook]):
    project = serializers.CharField(source="project.slug", read_only=True)

    class Meta:
        model = Webhook
        fields = ["id", "project", "url", "events", "active", "reason", "created_at"]
        read_only_fields = ["active", "reason", "created_at"]


class MessageSerializer(serializers.ModelSerializer[WebhookMessage]):
    class Meta:
        model = WebhookMessage
        fields = [
            "key",
            "message_id",
            "event",
            "data",
            "state",
            "attempts",
            "due_at",
            "status_code",
            "error",
            "created_at",
            "delivered_at",
        ]


class AdminView(ProjectAPIView):
    scope, role = Scope.MANAGE, Role.ADMIN

    def webhook(self, pk: int) -> Webhook:
        webhook = get_object_or_404(Webhook.objects.select_related("project"), pk=pk)
        self.membership(webhook.project_id)
        return webhook


class WebhooksView(AdminView):
    pagination_class = NewestFirst

    class Output(WebhookSerializer):
        secret = serializers.CharField()

        class Meta(WebhookSerializer.Meta):
            fields = [*WebhookSerializer.Meta.fields, "secret"]

    @extend_schema(responses=WebhookSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List webhooks, newest first."""
        rows = Webhook.objects.filter(project__in=self.projects()).select_related("project")
        return paginated(rows, WebhookSerializer, request, self)

    @extend_schema(request=WebhookSerializer, responses={201: Output})
    def post(self, request: Request) -> Response:
        """Make a webhook; its signing secret is in this answer and nowhere else."""
        data = WebhookSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        webhook, secret = webhooks.create_webhook(
            project=self.project(),
            url=data.validated_data["url"],
            events=[Event(event) for event in data.validated_data["events"]],
            by=self.user,
        )
        shown = WebhookSerializer(webhook).data | {"secret": secret}
        return Response(shown, status=status.HTTP_201_CREATED)


class WebhookView(AdminView):
    class Input(Body):
        active = serializers.BooleanField()

    @extend_schema(responses=WebhookSerializer)
    def get(self, request: Request, pk: int) -> Response:
        """Fetch one webhook."""
        return Response(WebhookSerializer(self.webhook(pk)).data)

    @extend_schema(request=Input, responses=WebhookSerializer)
    def patch(self, request: Request, pk: int) -> Response:
        """Switch a webhook on or off."""
        webhook = self.webhook(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        webhooks.set_active(webhook=webhook, active=data.validated_data["active"], by=self.user)
        webhook.refresh_from_db()
        return Response(WebhookSerializer(webhook).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, pk: int) -> Response:
        """Forget a webhook with all its messages."""
        webhooks.delete_webhook(webhook=self.webhook(pk), by=self.user)
        return Response(status=status.HTTP_204_NO_CONTENT)


class MessagesView(AdminView):
    pagination_class = NewestFirst

    @extend_schema(responses=MessageSerializer(many=True))
    def get(self, request: Request, pk: int) -> Response:
        """List what a webhook was sent, or will be, newest first."""
        return paginated(self.webhook(pk).messages.all(), MessageSerializer, request, self)


class SendAgainView(AdminView):
    @extend_schema(request=None, responses=MessageSerializer)
    def post(self, request: Request, pk: int, key: UUID) -> Response:
        """Send one message again under the same id."""
        found = get_object_or_404(self.webhook(pk).messages, key=key)
        webhooks.send_again(message=found)
        found.refresh_from_db()
        return Response(MessageSerializer(found).data)
