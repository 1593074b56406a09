"""Taking back what was decided of a draft, by whoever decided it and within the window."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.models import F, ProtectedError
from django.db.models.functions import Now

from accounts.errors import Conflict
from accounts.models import Project, User
from accounts.services import audit
from feedback.models import UNDO_WINDOW, Campaign, Item, Prompt, Slot
from feedback.models_drafts import Draft, DraftQuerySet, DraftRequest


def _undoable(by: User) -> DraftQuerySet:
    """Return what this person decided within the window, the last decision first."""
    decided = Draft.objects.filter(state__in=[Draft.State.APPROVED, Draft.State.REJECTED])
    return decided.filter(
        decided_by=by, decided_at__gt=Now() - UNDO_WINDOW, proposed__isnull=False
    ).order_by("-decided_at", "-pk")


def last_undoable(*, project: Project, by: User) -> Draft | None:
    """Return this person's last decision in the project if it is recent enough to take back."""
    return _undoable(by).of(project).select_related("request").first()


@transaction.atomic
def undo(*, draft: Draft, by: User) -> Draft:
    """Have a draft wait for a person again, and take out what its approval put in; audited.

    Conflict where somebody else decided, or too long ago, or where what came of it was handed out.
    """
    rows = Draft.objects.select_related("request__project", "request__version", "made_prompt")
    draft = rows.select_for_update(of=("self",)).get(pk=draft.pk)
    if not _undoable(by).filter(pk=draft.pk).exists():
        minutes = int(UNDO_WINDOW.total_seconds() // 60)
        raise Conflict(
            f"You did not decide this draft within the last {minutes} minutes. It stays as it is."
        )
    was: dict[str, Any] = {
        "was": draft.state,
        "edited": draft.edited,
        "reason": draft.reason,
        "prompt": draft.made_prompt_id,
    }
    prompt = draft.made_prompt
    items = list(prompt.items.all()) if prompt else [draft.response.item] if draft.response else []
    for item in items:
        _take_out(item, draft)
    draft.state, draft.reason, draft.edited = Draft.State.PENDING, "", False
    draft.decided_by = draft.decided_at = draft.approved_as = None
    draft.made_prompt = draft.response = draft.placed_in = None
    draft.save()
    if prompt is not None:
        _delete(prompt)
    audit(
        project=draft.request.project,
        by=by,
        action="draft.undo",
        target=f"draft {draft.pk} of {draft.request.version.name}",
        draft=draft.pk,
        **was,
    )
    return draft


def _take_out(item: Item, draft: Draft) -> None:
    """Delete an item of the campaign approved into; Conflict where somebody has met it."""
    campaign = Campaign.objects.select_for_update().get(pk=item.campaign_id)
    Item.objects.select_for_update().get(pk=item.pk)  # generation waits, and finds it gone
    slots = list(Slot.objects.select_for_update().filter(item=item))
    stays = (
        campaign.pk != draft.placed_in_id
        or any(slot.token or slot.state != Slot.State.OPEN for slot in slots)
        or item.skips.exists()
        or item.copies.exists()
        or item.decisions.exists()
    )
    if stays:
        raise Conflict(f"“{campaign.name}” makes use of it already. Withdraw its prompt instead.")
    item.delete()
    Campaign.objects.filter(pk=campaign.pk).update(
        to_generate=F("to_generate") - 1, generated=F("generated") - int(bool(slots))
    )


def _delete(prompt: Prompt) -> None:
    """Delete the prompt that a draft became; Conflict where anything else names it."""
    answering = DraftRequest.objects.filter(
        state=DraftRequest.State.GENERATING, prompts__contains=[prompt.pk]
    )
    in_use = Conflict("Its prompt is in use already. Withdraw the prompt instead.")
    if prompt.withdrawn_at or answering.exists():
        raise in_use
    try:
        prompt.delete()
    except ProtectedError:
        raise in_use from None
