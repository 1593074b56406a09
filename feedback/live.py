"""Send answers from live use into a campaign, where people judge them against others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
    campaign = hold(campaign)
    if not 1 <= len(completions) <= MAX_SENT:
        raise ProductError(f"Choose 1 to {MAX_SENT} answers to send.")
    if any(each.project_id != campaign.project_id for each in completions):
        raise ProductError("An answer belongs to another project.")
    if any(not each.text.strip() for each in completions):
        raise ProductError("An empty answer cannot be judged. Leave it out.")
    if any(each.source == Completion.Source.DRAFT for each in completions):
        raise Conflict("A draft is judged after somebody approved it on the drafts page.")
    by_prompt: dict[int, dict[str, Completion]] = {}
    for each in completions:
        [prompt] = add_prompts(project=campaign.project, prompts=[each.messages], tags=["live"])
        by_prompt.setdefault(prompt.pk, {}).setdefault(each.text, each)
    there = campaign_has(campaign, by_prompt)
    used = set(
        Response.objects.filter(completion__in=completions).values_list("completion_id", flat=True)
    )
    answers = {
        prompt_id: [
            Response(
                text=each.text,
                # A completion stands behind one response only; in a second campaign its id stays.
                completion=None if each.pk in used else each,
                source=f"completion {each.pk}",
            )
            for each in list(texts.values())[: campaign.responses_per_item]
        ]
        for prompt_id, texts in by_prompt.items()
        if prompt_id not in there
    }
    add_items(campaign=campaign, answers=answers)
    audit(
        project=campaign.project,
        by=by,
        action="campaign.send",
        target=campaign.name,
        items=len(answers),
    )
    return Sent(items=len(answers), already=len(there))


def hold(campaign: Campaign) -> Campaign:
    """Return the campaign locked until commit; Conflict unless it takes answers now."""
    campaign = Campaign.objects.select_for_update().get(pk=campaign.pk)
    if campaign.state not in (Campaign.State.OPEN, Campaign.State.GENERATING):
        raise Conflict(f"“{campaign.name}” is {campaign.get_state_display()}. Open it first.")
    return campaign


def campaign_has(campaign: Campaign, prompts: Collection[int]) -> set[int]:
    """Return which of the prompts, by id, the campaign has an item of."""
    return set(campaign.items.filter(prompt__in=prompts).values_list("prompt_id", flat=True))


def add_items(*, campaign: Campaign, answers: Mapping[int, Sequence[Response]]) -> None:
    """Make an item of each prompt with its unsaved answers; the campaign's sources write the rest.

    The caller holds the campaign, which has none of the prompts. ProductError where answers are
    missing and nobody is there to write them.
    """
    from feedback.tasks import generate_responses

    waiting = 0
    for prompt_id, ready in answers.items():
        if len(ready) < campaign.responses_per_item and not campaign.sources:
            raise ProductError(
                f"“{campaign.name}” compares {campaign.responses_per_item} answers and has no "
                "version to write the others. Send as many to each prompt, or another campaign."
            )
        item = Item.objects.create(campaign=campaign, prompt_id=prompt_id)
        for position, response in enumerate(ready):
            response.item, response.position = item, position
        Response.objects.bulk_create(ready)
        if len(ready) == campaign.responses_per_item:
            Slot.objects.bulk_create(make_slots(item, campaign=campaign, responses=len(ready)))
        else:
            waiting += 1
    Campaign.objects.filter(pk=campaign.pk).update(
        to_generate=F("to_generate") + len(answers),
        generated=F("generated") + len(answers) - waiting,
        state=Campaign.State.GENERATING if waiting else campaign.state,
        touched_at=Now(),
    )
    if waiting:
        generate_responses.delay_on_commit(campaign.pk)


def open_campaigns(membership: Membership) -> QuerySet[Campaign]:
    """Return the campaigns of the member's project that take answers now."""
    return Campaign.objects.filter(
        project=membership.project, state__in=[Campaign.State.OPEN, Campaign.State.GENERATING]
    )
