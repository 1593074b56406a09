"""Gold items: tasks whose answer is known, set by a lead."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

from django.db import transaction
from django.db.models import Count, Q

from accounts.errors import Conflict, ProductError
from accounts.models import User
from accounts.services import audit
from feedback import extras
from feedback.models import MAX_RESPONSES, Campaign, Item, ItemRole, Judgement, Response
from feedback.probes import copy_item
from feedback.scales import Graded, Known, Rated, grade
from feedback.services import add_prompts, check_messages

# How far from a known level people may be unless the lead says otherwise.
WITHIN = 1
# Statistics read so many judgements of gold.
MOST_GRADED = 20_000


def check_answer(campaign: Campaign, answer: Mapping[str, Any], responses: int) -> dict[str, Any]:
    """Return an answer by position that tells something apart, or raise ProductError.

    It is ``{"thumb": 1}``, ``{"ranking": [[1], [0, 2]]}``: groups of positions, best first, every
    response once, or ``{"ratings": {"0": {"tone": 4}}}``: levels of some scales of some responses.
    """
    if campaign.kind == Campaign.Kind.RATING:
        return {"ratings": _check_levels(campaign, answer.get("ratings"), responses)}
    if campaign.kind == Campaign.Kind.THUMBS:
        if answer.get("thumb") not in (-1, 1):
            raise ProductError("Say whether the answer is good: “thumb” is 1 or -1.")
        return {"thumb": answer["thumb"]}
    groups = answer.get("ranking")
    try:
        ranking = [[int(position) for position in group] for group in groups or ()]
    except (TypeError, ValueError):
        raise ProductError("“ranking” is a list of groups of positions, best first.") from None
    if sorted(position for group in ranking for position in group) != list(range(responses)):
        raise ProductError(
            f"The ranking must name each position from 0 to {responses - 1} once, best first."
        )
    ranking = [group for group in ranking if group]
    if len(ranking) < 2:
        raise ProductError("A known answer must tell at least one response from another.")
    return {"ranking": ranking}


def _check_levels(campaign: Campaign, given: Any, responses: int) -> dict[str, dict[str, int]]:
    """Return the levels that a lead named, by position and scale; scales left out say nothing."""
    asked = {scale.key: scale for scale in extras.stored(campaign.extras).ratings}
    if not isinstance(given, Mapping) or not all(isinstance(of, Mapping) for of in given.values()):
        raise ProductError("“ratings” names levels by position and scale: {“0”: {“tone”: 4}}.")
    named = {str(position): dict(levels) for position, levels in given.items() if levels}
    if not named:
        raise ProductError("Name the right level of at least one scale of a response.")
    if unknown := sorted(set(named) - {str(position) for position in range(responses)}):
        raise ProductError(
            f"There is no response at position {unknown[0][:20]}; positions are 0 to "
            f"{responses - 1}."
        )
    for levels in named.values():
        for key, level in levels.items():
            if key not in asked:
                raise ProductError(
                    f"This campaign has no scale “{str(key)[:40]}”. There are {', '.join(asked)}."
                )
            scale = asked[key]
            if type(level) is not int or not 1 <= level <= scale.levels:
                raise ProductError(f"{scale.label} is rated from 1 to {scale.levels}.")
    return named


def check_gold(campaign: Campaign, answer: Mapping[str, Any], responses: int) -> dict[str, Any]:
    """Return a known answer as ``check_answer`` does; known levels say how far off still counts.

    ProductError where a level leaves nothing that would be wrong.
    """
    clean = check_answer(campaign, answer, responses)
    if "ratings" not in clean:
        return clean
    within = answer.get("within")
    within = WITHIN if within is None else within
    if type(within) is not int or within < 0:
        raise ProductError("“within” is how many levels off still count as right: 0 or more.")
    for scale in extras.stored(campaign.extras).ratings:
        for levels in clean["ratings"].values():
            level = levels.get(scale.key)
            if level and Known(level, within, scale.levels).chance == 1:
                raise ProductError(
                    f"On {scale.label} every level is within {within} of {level}, so nobody could "
                    "be wrong. Allow less, or name another level."
                )
    return clean | {"within": within}


@transaction.atomic
def make_gold(*, item: Item, answer: Mapping[str, Any], by: User) -> Item:
    """Return the gold copy of an item under this answer, or the gold item itself with a new one.

    Annotators who judged the original never meet the copy. A changed answer holds for what was
    judged before, too: nothing is graded once and for all.
    """
    item = Item.objects.select_for_update().select_related("campaign__project").get(pk=item.pk)
    campaign = item.campaign
    clean = check_gold(campaign, answer, item.responses.count())
    if item.role == ItemRole.GOLD:
        Item.objects.filter(pk=item.pk).update(gold_answer=clean)
        golden, action = item, "gold.change"
    elif item.role != ItemRole.NORMAL:
        raise Conflict("This is a copy of another item. Make that one gold.")
    elif Item.objects.filter(repeat_of=item, role=ItemRole.GOLD).exists():
        raise Conflict("This item is gold already. Change its answer among the gold items.")
    else:
        golden, action = copy_item(item, role=ItemRole.GOLD, gold_answer=clean), "gold.make"
    _audit(golden, campaign, by, action, clean)
    golden.refresh_from_db()
    return golden


@transaction.atomic
def add_gold(
    *,
    campaign: Campaign,
    prompt: Any,
    responses: Sequence[str],
    answer: Mapping[str, Any],
    by: User,
) -> Item:
    """Return a new gold item with texts of the lead's own."""
    if len(responses) != campaign.responses_per_item or not 1 <= len(responses) <= MAX_RESPONSES:
        raise ProductError(
            f"Here an item has {campaign.responses_per_item} responses; send as many, so that gold "
            "looks like the rest."
        )
    if any(not text.strip() for text in responses) or len(set(responses)) < len(responses):
        raise ProductError("Every response needs a text of its own.")
    clean = check_gold(campaign, answer, len(responses))
    [stored] = add_prompts(project=campaign.project, prompts=[check_messages(prompt)])
    item = Item.objects.create(
        campaign=campaign, prompt=stored, role=ItemRole.GOLD, gold_answer=clean
    )
    Response.objects.bulk_create(
        Response(item=item, position=position, text=text.replace("\x00", ""), source="gold")
        for position, text in enumerate(responses)
    )
    _audit(item, campaign, by, "gold.make", clean)
    return item


def _audit(item: Item, campaign: Campaign, by: User, action: str, answer: dict[str, Any]) -> None:
    target = f"item {item.pk} of {campaign.name}"
    audit(project=campaign.project, by=by, action=action, target=target, answer=answer)


def known_truths(campaign: Campaign) -> dict[Hashable, int]:
    """Return the truth of every unit that gold items tell apart; two queries, one without gold."""
    rows = Item.objects.filter(campaign=campaign, role=ItemRole.GOLD)
    return truths({item: answer or {} for item, answer in rows.values_list("id", "gold_answer")})


def truths(answers: Mapping[int, Mapping[str, Any]]) -> dict[Hashable, int]:
    """Return what answers by item say, unit by unit, as verdicts name them; one query or none."""
    if not answers:
        return {}
    places: dict[int, dict[int, int]] = {}
    found = Response.objects.filter(item__in=answers).values_list("item", "position", "id")
    for item, position, response in found:
        places.setdefault(item, {})[position] = response
    known: dict[Hashable, int] = {}
    for item, answer in answers.items():
        if "thumb" in answer:
            known[item] = answer["thumb"]
            continue
        if "ranking" not in answer:
            continue  # levels tell nothing of which is better
        rank = {
            places[item][position]: index
            for index, group in enumerate(answer["ranking"])
            for position in group
        }
        for first, second in combinations(sorted(rank), 2):
            lead = rank[second] - rank[first]
            if lead:
                known[first, second] = 1 if lead > 0 else -1
    return known


def known_levels(campaign: Campaign) -> dict[tuple[Hashable, str], Known]:
    """Return what is known of gold's levels, by response (as ratings name it) and scale.

    Two queries, one without gold, none where a campaign does not rate.
    """
    if campaign.kind != Campaign.Kind.RATING:
        return {}
    rows = Item.objects.filter(campaign=campaign, role=ItemRole.GOLD)
    answers = dict(rows.values_list("id", "gold_answer"))
    return levels_in(campaign, {item: answer or {} for item, answer in answers.items()})


def levels_in(
    campaign: Campaign, answers: Mapping[int, Mapping[str, Any]]
) -> dict[tuple[Hashable, str], Known]:
    """Return the levels that answers by item name, by response and scale; one query or none."""
    if not answers:
        return {}
    scales = {scale.key: scale.levels for scale in extras.stored(campaign.extras).ratings}
    found = Response.objects.filter(item__in=answers).values_list("item", "position", "id")
    return {
        (str(response), key): Known(level, answers[item].get("within", 0), scales[key])
        for item, position, response in found
        for key, level in answers[item].get("ratings", {}).get(str(position), {}).items()
    }


def graded(campaign: Campaign) -> list[Graded]:
    """Return how the newest levels met the known ones, in the order they came; three queries."""
    known = known_levels(campaign)
    if not known:
        return []
    judged = Judgement.objects.standing().filter(campaign=campaign, item__role=ItemRole.GOLD)
    rated = judged.order_by("-id").values_list("item_id", "annotator__username", "ratings")
    return grade((Rated(*row) for row in reversed(rated[:MOST_GRADED])), known)


@transaction.atomic
def set_checks(
    *,
    campaign: Campaign,
    by: User,
    gold_every: int,
    repeat_every: int,
    repeat_after: int,
    trust: Campaign.Trust,
) -> None:
    """Say how often gold and repeats come, and what follows from the trust test."""
    campaign.gold_every, campaign.repeat_every = gold_every, repeat_every
    campaign.repeat_after, campaign.trust = repeat_after, trust
    campaign.full_clean(exclude=["extras"])
    campaign.save(update_fields=["gold_every", "repeat_every", "repeat_after", "trust"])
    audit(
        project=campaign.project,
        by=by,
        action="campaign.checks",
        target=campaign.name,
        gold_every=gold_every,
        repeat_every=repeat_every,
        repeat_after=repeat_after,
        trust=str(trust),
    )


def gold_items(campaign: Campaign) -> list[Item]:
    """Return the gold items with ``met``, how many judged each; one query."""
    met = Count("judgements", filter=Q(judgements__retracted_at=None))
    rows = campaign.items.filter(role=ItemRole.GOLD).select_related("prompt")
    return list(rows.annotate(met=met).order_by("id"))
