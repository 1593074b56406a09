"""Pages of leads on what annotators go by: the code book's versions, and calibration sessions."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Membership, Role, User
from accounts.pages import all_asked, refused, sentence, whole
from feedback import calibration as sessions
from feedback import code_books
from feedback.models import Campaign, ItemRole


def _campaign(request: HttpRequest, slug: str, pk: int) -> tuple[Membership, Campaign]:
    membership = get_membership(request, slug, Role.LEAD)
    rows = Campaign.objects.select_related("project")
    return membership, get_object_or_404(rows, project=membership.project, pk=pk)


class CodeBookForm(forms.Form):
    """A new version of the code book."""

    text = forms.CharField(
        label="Code book",
        max_length=code_books.MAX_CODE_BOOK,
        help_text="Markdown. What makes a response better here, with examples.",
        widget=forms.Textarea(attrs={"rows": 16}),
    )
    changed = forms.CharField(
        label="What is new",
        required=False,
        max_length=300,
        help_text="One sentence that annotators read first.",
    )
    to_confirm = forms.BooleanField(
        label="Annotators confirm it before their next task", required=False, initial=True
    )


@login_required
def code_book(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show the versions with what changed in each; a post publishes another."""
    membership, campaign = _campaign(request, slug, pk)
    form = CodeBookForm(
        request.POST if request.method == "POST" else None,
        initial={"text": campaign.instructions},
    )
    books = list(
        campaign.code_books.select_related("by")
        .annotate(readers=Count("confirmations"))
        .order_by("-number")
    )
    older = [*(book.text for book in books[1:]), ""]
    context = {
        "campaign": campaign,
        "form": form,
        "books": [
            (book, code_books.difference(before, book.text))
            for book, before in zip(books, older, strict=False)
        ],
    }
    template = "feedback/code_book.html"
    if request.method != "POST":
        return render(request, template, context)
    if not form.is_valid():
        return refused(request, template, context, "Some fields need another look; see below.")
    try:
        book = code_books.publish(campaign=campaign, by=membership.user, **form.cleaned_data)
    except ProductError as error:
        return refused(request, template, context, error)
    messages.success(request, f"Version {book.number} stands beside every task now.")
    return redirect("code_book", slug, pk)


class SessionForm(forms.Form):
    """A calibration session: so many items, drawn at random, and who judges them."""

    name = forms.CharField(label="Name", max_length=120)
    items = forms.IntegerField(
        label="Items",
        min_value=1,
        max_value=sessions.MOST_ITEMS,
        initial=10,
        help_text="Drawn at random from those that were in no session.",
    )
    members = forms.ModelMultipleChoiceField(
        label="Who judges them", queryset=User.objects.none(), widget=forms.CheckboxSelectMultiple
    )

    def __init__(self, *args: Any, campaign: Campaign, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        members = User.objects.filter(memberships__project=campaign.project_id)
        field = self.fields["members"]
        assert isinstance(field, forms.ModelMultipleChoiceField)
        field.queryset = members.order_by("username")
        field.initial = list(members.values_list("pk", flat=True))


@login_required
def calibrations(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """List the sessions of a campaign; a post starts one."""
    membership, campaign = _campaign(request, slug, pk)
    form = SessionForm(request.POST if request.method == "POST" else None, campaign=campaign)
    rows = campaign.calibrations.annotate(item_count=Count("items")).order_by("-id")
    context = {"campaign": campaign, "form": form, "sessions": rows}
    template = "feedback/calibrations.html"
    if request.method != "POST":
        return render(request, template, context)
    if not form.is_valid():
        return refused(request, template, context, "Some fields need another look; see below.")
    fresh = campaign.items.filter(role=ItemRole.NORMAL).exclude(copies__role=ItemRole.CALIBRATION)
    try:
        session = sessions.start(
            campaign=campaign,
            name=form.cleaned_data["name"],
            items=list(fresh.order_by("?")[: form.cleaned_data["items"]]),
            members=list(form.cleaned_data["members"]),
            by=membership.user,
        )
    except ProductError as error:
        return refused(request, template, context, error)
    messages.success(request, f"“{session.name}” comes first in everybody's queue.")
    return redirect("calibration", slug, pk, session.pk)


@login_required
def calibration(request: HttpRequest, slug: str, pk: int, session: int) -> HttpResponse:
    """Show how far people agree in a session, and its notes; a post adds one."""
    membership, campaign = _campaign(request, slug, pk)
    rows = campaign.calibrations.select_related("by", "campaign__project")
    found = get_object_or_404(rows, pk=session)
    context = {
        "campaign": campaign,
        "session": found,
        "result": sessions.result(found),
        "notes": found.notes.select_related("by"),
        "not_asked": sessions.not_asked(found),
    }
    template = "feedback/calibration.html"
    if request.method != "POST":
        return render(request, template, context)
    try:
        sessions.note(
            session=found,
            text=request.POST.get("text", ""),
            by=membership.user,
            item=whole(request.POST.get("item", "")),
        )
    except ProductError as error:
        return refused(request, template, context, error)
    return redirect("calibration", slug, pk, session)


@login_required
@require_POST
def calibration_join(request: HttpRequest, slug: str, pk: int, session: int) -> HttpResponse:
    """Give members who came later the session's items, too."""
    membership, campaign = _campaign(request, slug, pk)
    rows = campaign.calibrations.select_related("campaign__project")
    found = get_object_or_404(rows, pk=session)
    people = User.objects.filter(username__in=all_asked(request.POST, "members"))
    try:
        new = sessions.add_members(session=found, members=list(people), by=membership.user)
    except ProductError as error:
        messages.error(request, sentence(error))
    else:
        names = ", ".join(member.username for member in new)
        messages.success(request, f"{names} will judge the items of “{found.name}” first.")
    return redirect("calibration", slug, pk, session)
