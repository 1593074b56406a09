"""What goes out first in a campaign, and what that brings: page and REST."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Role
from accounts.pages import refused
from accounts.pagination import NewestFirst, paginated
from accounts.serializers import Body
from feedback import dealing, informative
from feedback.api_checks import LeadView
from feedback.forms_lead import order_choices
from feedback.models import LEAST_CONTROL, MOST_CONTROL, Campaign, Judgement


class OrderForm(forms.Form):
    """What goes out first, and how much of it by lot."""

    queue_order = forms.ChoiceField(
        label="What goes out first", choices=order_choices, widget=forms.RadioSelect
    )
    control_percent = forms.IntegerField(
        label="Of the most informative order, by lot (percent)",
        min_value=LEAST_CONTROL,
        max_value=MOST_CONTROL,
        help_text="Without it nobody could tell what the order brings.",
    )


@login_required
def campaign_order(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show what goes out first in a campaign and what each arm brought; change it."""
    membership = get_membership(request, slug, Role.LEAD)
    rows = Campaign.objects.select_related("project")
    campaign = get_object_or_404(rows, project=membership.project, pk=pk)
    initial = {name: getattr(campaign, name) for name in OrderForm.base_fields}
    form = OrderForm(request.POST if request.method == "POST" else None, initial=initial)
    context = {"campaign": campaign, "form": form, "arms": informative.arms(campaign)}
    template = "feedback/order.html"
    if request.method != "POST":
        return render(request, template, context)
    if not form.is_valid():
        return refused(request, template, context, "Some fields need another look; see below.")
    values = form.cleaned_data
    try:
        dealing.set_order(
            campaign=campaign,
            order=values["queue_order"],
            control_percent=values["control_percent"],
            by=membership.user,
        )
    except ProductError as error:
        return refused(request, template, context, error)
    messages.success(request, "Kept. It holds from the next task on.")
    return redirect("campaign_order", slug, pk)


# REST


class OrderOutput(serializers.Serializer[Any]):
    """A campaign's order, and what it brought so far."""

    class ArmsOutput(serializers.Serializer[Any]):
        ordered = serializers.IntegerField(help_text="Judgements by the informative order.")
        control = serializers.IntegerField(help_text="Judgements by lot beside it.")
        worth = serializers.FloatField(
            allow_null=True, help_text="How many by lot tell as much as one by the order."
        )

    queue_order = serializers.CharField()
    control_percent = serializers.IntegerField()
    arms = ArmsOutput()


class OrderView(LeadView):
    class Input(Body):
        queue_order = serializers.ChoiceField(choices=Campaign.Order.choices)
        control_percent = serializers.IntegerField(
            min_value=LEAST_CONTROL, max_value=MOST_CONTROL, required=False
        )

    @extend_schema(responses=OrderOutput)
    def get(self, request: Request, pk: int) -> Response:
        """Say what goes out first in a campaign, and what the order and its control brought."""
        return self._said(self.campaign(pk))

    @extend_schema(request=Input, responses=OrderOutput)
    def post(self, request: Request, pk: int) -> Response:
        """Change what goes out first, from the next task on."""
        campaign = self.campaign(pk)
        data = self.Input(data=request.data)
        data.is_valid(raise_exception=True)
        values = data.validated_data
        dealing.set_order(
            campaign=campaign,
            order=values["queue_order"],
            control_percent=values.get("control_percent", campaign.control_percent),
            by=self.user,
        )
        campaign.refresh_from_db()
        return self._said(campaign)

    def _said(self, campaign: Campaign) -> Response:
        found = {
            "queue_order": campaign.queue_order,
            "control_percent": campaign.control_percent,
            "arms": asdict(informative.arms(campaign)),
        }
        return Response(OrderOutput(found).data)


class DealtSerializer(serializers.ModelSerializer[Judgement]):
    """A judgement and what its task was handed out by: “ordered”, “control”, or neither."""

    arm = serializers.CharField(source="slot.arm")
    annotator = serializers.CharField(source="annotator.username")

    class Meta:
        model = Judgement
        fields = ["id", "client_id", "item", "annotator", "arm", "seconds", "created_at"]


class ArmsView(LeadView):
    pagination_class = NewestFirst

    @extend_schema(responses=DealtSerializer(many=True))
    def get(self, request: Request, pk: int) -> Response:
        """List a campaign's standing judgements with the arm of each, newest first.

        For leads alone: gold and repeats belong to no arm, which annotators must not see.
        """
        rows = Judgement.objects.standing().filter(campaign=self.campaign(pk))
        return paginated(rows.select_related("slot", "annotator"), DealtSerializer, request, self)
