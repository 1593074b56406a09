"""Send answers from live use into a campaign, where people judge them against others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from accounts.errors import Conflict, ProductError
from accounts.models import Membership, User
from accounts.services import audit
from feedback.assignment import make_slots
from feedback.models import Campaign, Item, Response, Slot
from feedback.services import add_prompts
from inference.models import Completion

MAX_SENT = 500


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What became of answers that were sent: items made, and prompts that were there already."""

    items: int
    already: int


@transaction.atomic
def send_to_campaign(
    *, campaign: Campaign, completions: Sequence[Completion], by: User | None
) -> Sent:
    """Make an item of each answer's prompt with that answer; the campaign's sources write the rest.

    Answers to one prompt stand in one item. A prompt that the campaign has is left as it is.
    Errors: ProductError, Conflict; nothing is stored then.
    """
    from feedback.tasks import generate_responses

    campaign = Campaign.objects.select_for_update().get(pk=campaign.pk)
    if campaign.state not in (Campaign.State.OPEN, Campaign.State.GENERATING):
        raise Conflict(f"“{campaign.name}” is {campaign.get_state_display()}. Open it first.")
    if not 1 <= len(completions) <= MAX_SENT:
        raise ProductError(f"Choose 1 to {MAX_SENT} answers to send.")
    if any(each.project_id != campaign.project_id for each in completions):
        raise ProductError("An answer belongs to another project.")
    if any(not each.text.strip() for each in completions):
        raise ProductError("An empty answer cannot be judged. Leave it out.")
    by_prompt: dict[int, dict[str, Completion]] = {}
    for each in completions:
        [prompt] = add_prompts(project=campaign.project, prompts=[each.messages], tags=["live"])
        by_prompt.setdefault(prompt.pk, {}).setdefault(each.text, each)
    there = set(campaign.items.filter(prompt__in=by_prompt).values_list("prompt_id", flat=True))
    used = set(
        Response.objects.filter(completion__in=completions).values_list("completion_id", flat=True)
    )
    waiting = 0
    for prompt_id, answers in by_prompt.items():
        if prompt_id in there:
            continue
        chosen = list(answers.values())[: campaign.responses_per_item]
        if len(chosen) < campaign.responses_per_item and not campaign.sources:
            raise ProductError(
                f"“{campaign.name}” compares {campaign.responses_per_item} answers and has no "
                "version to write the others. Send as many to each prompt, or another campaign."
            )
        item = Item.objects.create(campaign=campaign, prompt_id=prompt_id)
        Response.objects.bulk_create(
            Response(
                item=item,
                position=position,
                text=each.text,
                # A completion stands behind one response only; in a second campaign its id stays.
                completion=None if each.pk in used else each,
                source=f"completion {each.pk}",
            )
            for position, each in enumerate(chosen)
        )
        if len(chosen) == campaign.responses_per_item:
            Slot.objects.bulk_create(make_slots(item, campaign=campaign, responses=len(chosen)))
        else:
            waiting += 1
    made = len(by_prompt) - len(there)
    Campaign.objects.filter(pk=campaign.pk).update(
        to_generate=F("to_generate") + made,
        generated=F("generated") + made - waiting,
        state=Campaign.State.GENERATING if waiting else campaign.state,
        touched_at=Now(),
    )
    if waiting:
        generate_responses.delay_on_commit(campaign.pk)
    audit(project=campaign.project, by=by, action="campaign.send", target=campaign.name, items=made)
    return Sent(items=made, already=len(there))


def open_campaigns(membership: Membership) -> QuerySet[Campaign]:
    """Return the campaigns of the member's project that take answers now."""
    return Campaign.objects.filter(
        project=membership.project, state__in=[Campaign.State.OPEN, Campaign.State.GENERATING]
    )
