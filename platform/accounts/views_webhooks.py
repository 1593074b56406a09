"""Settings of a project: addresses that are told of its events, and what became of the messages."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from accounts import webhooks
from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Event, Membership, Role, Webhook
from accounts.pages import page_of, refused


class WebhookForm(forms.Form):
    """An address to tell of events."""

    url = forms.URLField(
        label="Address",
        max_length=500,
        assume_scheme="https",
        help_text="It receives a POST with JSON for each event, and answers with any 2xx.",
    )
    events = forms.MultipleChoiceField(
        label="Tell it when",
        choices=Event.choices,
        widget=forms.CheckboxSelectMultiple,
        error_messages={"required": "Choose at least one event to be told of."},
    )


def _context(membership: Membership, form: WebhookForm) -> dict[str, Any]:
    return {"webhooks": Webhook.objects.filter(project=membership.project), "form": form}


@login_required
@never_cache
def webhook_list(request: HttpRequest, slug: str) -> HttpResponse:
    """List webhooks; make one, whose secret is on this one answer and nowhere else."""
    membership = get_membership(request, slug, Role.ADMIN)
    form = WebhookForm(request.POST if request.method == "POST" else None)
    template = "settings/webhooks.html"
    if request.method != "POST":
        return render(request, template, _context(membership, form))
    if not form.is_valid():
        context = _context(membership, form)
        return refused(request, template, context, "Some fields need another look; see below.")
    try:
        made, secret = webhooks.create_webhook(
            project=membership.project,
            url=form.cleaned_data["url"],
            events=[Event(event) for event in form.cleaned_data["events"]],
            by=membership.user,
        )
    except (ProductError, ValidationError) as error:
        return refused(request, template, _context(membership, form), error)
    context = _context(membership, WebhookForm()) | {"made": made, "secret": secret}
    return render(request, template, context)


def _webhook(membership: Membership, pk: int) -> Webhook:
    rows = Webhook.objects.filter(project=membership.project).select_related("project")
    return get_object_or_404(rows, pk=pk)


@login_required
def webhook(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show one webhook with its messages, newest first."""
    membership = get_membership(request, slug, Role.ADMIN)
    found = _webhook(membership, pk)
    context = {"webhook": found, "page": page_of(request, found.messages.order_by("-id"))}
    return render(request, "settings/webhook.html", context)


@login_required
@require_POST
def webhook_active(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Switch a webhook on or off."""
    membership = get_membership(request, slug, Role.ADMIN)
    found = _webhook(membership, pk)
    active = request.POST.get("active") == "1"
    webhooks.set_active(webhook=found, active=active, by=membership.user)
    said = "is told of events again" if active else "is told of nothing until it is switched on"
    messages.success(request, f"{found.url} {said}.")
    return redirect("webhook", slug, pk)


@login_required
@require_POST
def webhook_delete(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Forget a webhook."""
    membership = get_membership(request, slug, Role.ADMIN)
    found = _webhook(membership, pk)
    webhooks.delete_webhook(webhook=found, by=membership.user)
    messages.success(request, f"{found.url} is told of nothing any more.")
    return redirect("webhooks", slug)


@login_required
@require_POST
def message_again(request: HttpRequest, slug: str, pk: int, key: UUID) -> HttpResponse:
    """Send one message again."""
    membership = get_membership(request, slug, Role.ADMIN)
    message = get_object_or_404(_webhook(membership, pk).messages, key=key)
    webhooks.send_again(message=message)
    messages.success(request, "The message is on its way again.")
    return redirect("webhook", slug, pk)
