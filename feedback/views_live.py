"""A lead's action on the feedback pages: send chosen answers into a campaign."""

from __future__ import annotations

import uuid

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_POST

from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Role
from accounts.pages import whole
from feedback.live import open_campaigns, send_to_campaign
from inference.models import Completion


@require_POST
@login_required
def feedback_send(request: HttpRequest, slug: str) -> HttpResponse:
    """Send the chosen answers into the chosen campaign."""
    membership = get_membership(request, slug, Role.LEAD)
    number = whole(request.POST.get("campaign", ""))
    campaign = get_object_or_404(open_campaigns(membership), pk=number or 0)
    try:
        ids = [uuid.UUID(value) for value in request.POST.getlist("completion")]
        chosen = list(Completion.objects.filter(project=membership.project, pk__in=ids))
        sent = send_to_campaign(campaign=campaign, completions=chosen, by=membership.user)
    except ValueError:
        messages.error(request, "This form was changed on its way. Choose the answers again.")
        return redirect("feedback_list", slug)
    except ProductError as error:
        messages.error(request, error.message)
        return redirect("feedback_list", slug)
    text = f"Sent into “{campaign.name}”: {sent.items} new to judge."
    if sent.already:
        text += f" It had {sent.already} of these prompts already."
    messages.success(request, text)
    return redirect("campaign", slug, campaign.pk)
