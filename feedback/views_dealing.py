"""The items of a campaign: what goes out before others, and what is for named people."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.db.models import Count, Exists, IntegerField, Max, OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Membership, Role, User
from accounts.pages import all_asked, asked, page_of, refused, whole
from feedback import dealing
from feedback.models import Campaign, Item, ItemRole, Slot

SHOWN = {"first": "with a priority", "named": "for named people"}


def _rows(campaign: Campaign, show: str) -> QuerySet[Item]:
    slots = Slot.objects.filter(item=OuterRef("pk"))
    rows = Item.objects.filter(campaign=campaign, role=ItemRole.NORMAL).select_related("prompt")
    if show == "first":
        rows = rows.filter(Exists(slots.exclude(priority=0)))
    elif show == "named":
        rows = rows.filter(Exists(slots.exclude(reserved_for=None)))

    def of_slots(value: Count | Max, slots: QuerySet[Slot]) -> Subquery:
        counted = slots.order_by().values("item").annotate(value=value).values("value")
        return Subquery(counted, output_field=IntegerField())

    return rows.annotate(
        priority=of_slots(Max("priority"), slots),
        wanted=of_slots(Count("pk"), slots),
        filled=of_slots(Count("pk"), slots.filter(state=Slot.State.FILLED)),
    ).order_by("id")


def _context(request: HttpRequest, campaign: Campaign) -> dict[str, Any]:
    show = request.GET.get("show", "")
    page = page_of(request, _rows(campaign, show))
    named: dict[int, list[Slot]] = {}
    slots = Slot.objects.filter(item__in=page.object_list).exclude(reserved_for=None)
    for slot in slots.select_related("reserved_for").order_by("reserved_for__username"):
        named.setdefault(slot.item_id, []).append(slot)
    chosen = set(request.POST.getlist("item"))
    return {
        "campaign": campaign,
        "page": page,
        "rows": [(item, named.get(item.pk, []), str(item.pk) in chosen) for item in page],
        "show": show,
        "shown": SHOWN.items(),
        "members": User.objects.filter(memberships__project=campaign.project).order_by("username"),
        "given": request.POST,
        "named": all_asked(request.POST, "annotator"),
        "most": dealing.MOST_PRIORITY,
    }


@transaction.atomic
def _change(request: HttpRequest, membership: Membership, items: list[Item]) -> str:
    """Do what the form asks with every item or with none; return the sentence that says so."""
    act, by = request.POST.get("act", ""), membership.user
    count = "1 item" if len(items) == 1 else f"{len(items)} items"
    if not items:
        raise ProductError("Choose at least one item in the table first.")
    if act == "priority":
        wanted = whole(asked(request.POST, "priority"))
        if wanted is None:
            raise ProductError("A priority is a whole number; 0 is the usual one.")
        for item in items:
            dealing.prioritise(item=item, priority=wanted, by=by)
        return f"{count} now of priority {wanted}."
    if act == "assign":
        names = all_asked(request.POST, "annotator")
        members = User.objects.filter(memberships__project=membership.project)
        people = list(members.filter(username__in=names).order_by("username"))
        if not people or len(people) != len(set(names)):
            raise ProductError("Choose members of the project whom the items are for.")
        for item in items:
            try:
                dealing.assign(item=item, annotators=people, by=by)
            except ProductError as error:
                error.message = f"Item {item.pk}: {error.message}"
                raise
        return f"{count} now for {', '.join(person.username for person in people)}."
    if act == "release":
        for item in items:
            dealing.release(item=item, by=by)
        return f"{count} now for anybody, but for what was taken up already."
    raise ProductError("Set a priority, name people, or let anybody have them.")


@login_required
def campaign_items(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """List a campaign's items; let those chosen go out first, or to named people only."""
    membership = get_membership(request, slug, Role.LEAD)
    campaigns = Campaign.objects.select_related("project")
    campaign = get_object_or_404(campaigns, project=membership.project, pk=pk)
    template = "feedback/items.html"
    if request.method != "POST":
        return render(request, template, _context(request, campaign))
    chosen = {whole(one) or 0 for one in request.POST.getlist("item")}
    rows = Item.objects.filter(campaign=campaign, role=ItemRole.NORMAL, pk__in=chosen)
    items = list(rows.select_related("campaign__project").order_by("id"))
    try:
        messages.success(request, _change(request, membership, items))
    except ProductError as error:
        return refused(request, template, _context(request, campaign), error)
    return redirect(request.get_full_path())
