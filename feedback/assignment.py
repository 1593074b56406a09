"""Hand out tasks and take judgements: exactly N for each item, whatever happens.

An item that needs N judgements has N slot rows from the start. ``claim`` takes one with SKIP LOCKED
and stamps holder, expiry and fencing token; ``submit`` fills it only for the bearer of that token.
Unique constraints hold the same promises underneath. All times are the database's own clock, so
a web host whose clock jumps neither loses nor doubles anything.
"""

from __future__ import annotations

import json
import random
import uuid
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F
from django.db.models.functions import Now

from accounts.errors import Conflict, ProductError, TooLarge
from accounts.models import Membership, User
from accounts.statements import one_row
from feedback import extras, probes
from feedback.documents import Document, detach
from feedback.leases import BARRED, lease_end
from feedback.models import (
    MAX_COMMENT,
    MAX_CORRECTION,
    UNDO_WINDOW,
    Arm,
    Campaign,
    Item,
    ItemRole,
    Judgement,
    Response,
    Skip,
    SkipReason,
    Slot,
)

# Each is one round trip, and the judging path has only these: look up, fill, claim.
# ``+ 0`` and OFFSET 0 keep the planner from going through everything that the annotator holds:
# while statistics are old, it takes that to be nothing.
_CLAIM = """
WITH held AS (
  SELECT id, campaign_id, item_id, role, "order", token FROM feedback_slot
   WHERE campaign_id = %(campaign)s AND holder_id = %(me)s AND state = 'leased'
), barred AS (
  {barred}
), reserved AS (
  SELECT candidate.id
    FROM feedback_slot AS candidate
   WHERE %(open)s AND NOT EXISTS (SELECT 1 FROM held) AND NOT EXISTS (SELECT 1 FROM barred)
     AND candidate.campaign_id = %(campaign)s AND candidate.state = 'open'
     AND candidate.reserved_for_id = %(me)s AND NOT EXISTS (
       SELECT 1 FROM feedback_skip AS skip
        WHERE skip.item_id = candidate.item_id AND skip.annotator_id + 0 = %(me)s OFFSET 0)
   ORDER BY candidate.shuffle
   LIMIT 1
     FOR UPDATE OF candidate SKIP LOCKED
), chosen AS (
  SELECT candidate.id, {arm} AS arm
    FROM feedback_slot AS candidate
   WHERE %(open)s AND NOT EXISTS (SELECT 1 FROM held) AND NOT EXISTS (SELECT 1 FROM barred)
     AND NOT EXISTS (SELECT 1 FROM reserved)
     AND candidate.campaign_id = %(campaign)s AND candidate.reserved_for_id IS NULL AND {free}
     AND NOT EXISTS (
       SELECT 1 FROM feedback_slot AS mine
        WHERE mine.item_id = candidate.item_id AND mine.holder_id + 0 = %(me)s OFFSET 0)
     AND NOT EXISTS (
       SELECT 1 FROM feedback_skip AS skip
        WHERE skip.item_id = candidate.item_id AND skip.annotator_id + 0 = %(me)s OFFSET 0)
   ORDER BY {order}
   LIMIT 1
     FOR UPDATE OF candidate SKIP LOCKED
), taken AS (
  UPDATE feedback_slot AS slot
     SET state = 'leased', holder_id = %(me)s, token = slot.token + 1, leased_at = now(),
         lease_expires_at = now() + make_interval(secs => %(lease)s), arm = picked.arm
    FROM (SELECT id, '' AS arm FROM reserved UNION ALL SELECT id, arm FROM chosen) AS picked
   WHERE slot.id = picked.id
  RETURNING slot.id, slot.campaign_id, slot.item_id, slot.role, slot."order", slot.token
), task AS (
  SELECT * FROM held UNION ALL SELECT * FROM taken
)
SELECT task.*, prompt.messages, prompt.documents, responses.ids, responses.positions,
       responses.texts
  FROM task
  JOIN feedback_item AS item ON item.id = task.item_id
  JOIN feedback_prompt AS prompt ON prompt.id = item.prompt_id
  CROSS JOIN LATERAL (
    SELECT array_agg(id) AS ids, array_agg(position) AS positions, array_agg(text) AS texts
      FROM feedback_response WHERE item_id = task.item_id) AS responses
"""
# Each walks an index in its order. Without the informative order every gain is 0.
_CLAIM_OPEN = _CLAIM.format(
    barred=BARRED,
    arm="%(arm)s::varchar",
    free="candidate.state = 'open'",
    order='candidate.priority DESC, candidate.gain DESC, candidate."index", candidate.shuffle',
)
_CLAIM_BY_LOT = _CLAIM.format(
    barred=BARRED,
    arm="%(arm)s::varchar",
    free="candidate.state = 'open'",
    order="candidate.priority DESC, candidate.shuffle",
)
# Chosen once already, and by the arm that chose it then.
_CLAIM_EXPIRED = _CLAIM.format(
    barred=BARRED,
    arm="candidate.arm",
    free="candidate.state = 'leased' AND candidate.lease_expires_at < now()",
    order="candidate.lease_expires_at",
)
# In the order of the model, as from_db wants them.
_SLOT_FIELDS = ["id", "campaign_id", "item_id", "role", "order", "token"]
_CAMPAIGN_FIELDS = [
    "id", "project_id", "kind", "extras", "state", "gold_every", "repeat_every", "repeat_after",
    "queue_order", "control_percent",
]  # fmt: skip
_RESPONSE_FIELDS = ["id", "item_id", "position", "text"]

_LOOK_UP = """
SELECT slot.item_id, campaign.id, campaign.project_id, campaign.kind, campaign.extras,
       campaign.state, campaign.gold_every, campaign.repeat_every, campaign.repeat_after,
       campaign.queue_order, campaign.control_percent, slot.role, slot."order",
       membership.id, membership.role, responses.positions, responses.ids, earlier.id
  FROM feedback_slot AS slot
  JOIN feedback_campaign AS campaign ON campaign.id = slot.campaign_id
  LEFT JOIN accounts_membership AS membership
    ON membership.project_id = campaign.project_id AND membership.user_id = %(me)s
  LEFT JOIN feedback_judgement AS earlier ON earlier.client_id = %(client_id)s
  CROSS JOIN LATERAL (
    SELECT array_agg(position) AS positions, array_agg(id) AS ids
      FROM feedback_response WHERE item_id = slot.item_id) AS responses
 WHERE slot.id = %(slot)s
"""

_FILL = """
WITH filled AS (
  UPDATE feedback_slot SET state = 'filled', lease_expires_at = NULL
   WHERE id = %(slot)s AND holder_id + 0 = %(me)s AND token = %(token)s AND state = 'leased'
  RETURNING id, item_id, campaign_id
)
INSERT INTO feedback_judgement (client_id, slot_id, item_id, campaign_id, annotator_id, ranking,
                                thumb, strength, both_bad, comment, ratings, safety, reasons,
                                correction, corrected_id, shown, seconds, retracted_why)
SELECT %(client_id)s, id, item_id, campaign_id, %(me)s, %(ranking)s::jsonb, %(thumb)s::smallint,
       %(strength)s::smallint, %(both_bad)s, %(comment)s, %(ratings)s::jsonb, %(safety)s::jsonb,
       %(reasons)s::varchar[], %(correction)s, %(corrected)s::bigint, %(shown)s::bigint[],
       %(seconds)s::float8, ''
  FROM filled
RETURNING id, created_at
"""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What an annotator sees: a slot with its prompt and responses in the order to show them."""

    slot: Slot
    messages: list[dict[str, str]]
    documents: list[Document]
    responses: list[Response]

    @property
    def turns(self) -> list[dict[str, str]]:
        """Return the conversation without what its documents became."""
        return detach(self.messages, self.documents)

    @property
    def client_id(self) -> uuid.UUID:
        """Return the id under which this hand-out's judgement is stored, the same in every tab."""
        return uuid.uuid5(uuid.NAMESPACE_OID, f"laurel:{self.slot.pk}:{self.slot.token}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an annotator sends: a ranking or a thumb (neither where a campaign only rates).

    ``ratings`` are levels from 1 by response id and scale, ``safety`` labels by response id;
    ``correction`` is what ``corrected`` should have said.
    """

    ranking: list[list[int]] | None = None
    thumb: int | None = None
    strength: int | None = None
    both_bad: bool = False
    comment: str = ""
    ratings: dict[int, dict[str, int]] = field(default_factory=dict)
    safety: dict[int, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    correction: str = ""
    corrected: int | None = None
    seconds: float | None = None


def orders(*, item_id: int, seed: int, responses: int, slots: int) -> list[list[int]]:
    """Return the left-to-right order for each slot: random, and balanced within the item.

    Every second slot shows the reverse of the one before, so each pair of responses stands equally
    often either way round (to within one when ``slots`` is odd).
    """
    chooser = random.Random(f"{seed}:{item_id}")
    result: list[list[int]] = []
    for index in range(slots):
        if index % 2 == 0:
            order = list(range(responses))
            chooser.shuffle(order)
        else:
            order = result[-1][::-1]
        result.append(order)
    return result


def make_slots(item: Item, *, campaign: Campaign, responses: int) -> list[Slot]:
    """Return the unsaved slots of a new item."""
    shuffles = random.Random(f"{campaign.seed}:shuffle:{item.pk}")
    places = orders(
        item_id=item.pk,
        seed=campaign.seed,
        responses=responses,
        slots=campaign.judgements_per_item,
    )
    return [
        Slot(
            campaign=campaign,
            item=item,
            index=index,
            shuffle=shuffles.randrange(-(2**31), 2**31),
            order=order,
        )
        for index, order in enumerate(places)
    ]


def claim(*, campaign: Campaign, annotator: User, judged: ItemRole | None = None) -> Task | None:
    """Return the annotator's task: the one they hold, or a new one; None when nothing is left.

    ``judged`` is what they judged a moment ago, where the caller knows it: after gold or a repeat
    comes neither. One query, a second when no slot is open; a few more where chance says that it is
    time for gold or a repeat.
    """
    if judged in (None, ItemRole.NORMAL) and campaign.state == Campaign.State.OPEN:
        probes.plant_by_chance(campaign=campaign, annotator=annotator)
    return _take(campaign, annotator)


def _take(campaign: Campaign, annotator: User) -> Task | None:
    statement, arm = _draw(campaign)
    values = {
        "me": annotator.pk,
        "campaign": campaign.pk,
        "lease": settings.LEASE_SECONDS,
        "open": campaign.state == Campaign.State.OPEN,
        "arm": arm,
    }
    try:
        row = one_row(statement, values) or one_row(_CLAIM_EXPIRED, values)
    except IntegrityError:
        # The same annotator asked twice at once (two tabs); the other request took a slot.
        row = one_row(_CLAIM_OPEN, values | {"open": False})
    return _task(row) if row is not None else None


def _draw(campaign: Campaign) -> tuple[str, str]:
    """Return how an open slot is to be found now, and the arm that its hand-out counts for."""
    if campaign.queue_order == Campaign.Order.RANDOM:
        return _CLAIM_BY_LOT, ""
    if campaign.queue_order == Campaign.Order.LEAST_JUDGED:
        return _CLAIM_OPEN, ""
    if random.random() * 100 < campaign.control_percent:
        return _CLAIM_BY_LOT, Arm.CONTROL.value
    return _CLAIM_OPEN, Arm.ORDERED.value


def _task(row: tuple[Any, ...]) -> Task:
    *slot_values, messages, documents, ids, positions, texts = row
    slot = Slot.from_db(None, _SLOT_FIELDS, slot_values)
    by_position = {
        position: Response.from_db(
            None, _RESPONSE_FIELDS, [response_id, slot.item_id, position, text]
        )
        for response_id, position, text in zip(ids, positions, texts, strict=True)
    }
    return Task(
        slot=slot,
        messages=json.loads(messages),
        documents=json.loads(documents),
        responses=[by_position[position] for position in slot.order],
    )


def renew(*, slot_id: int, token: int, annotator: User) -> None:
    """Extend a lease (the page's heartbeat); Conflict when it is no longer held."""
    renewed = Slot.objects.filter(
        pk=slot_id, holder=annotator, token=token, state=Slot.State.LEASED
    ).update(lease_expires_at=lease_end())
    if not renewed:
        raise Conflict("This task was given to somebody else or is done. Take the next one.")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A slot as somebody with an answer finds it; ``earlier`` is what has their client id."""

    slot_id: int
    item_id: int
    role: ItemRole
    campaign: Campaign
    membership: Membership | None
    shown: list[int]
    earlier: int | None


def find_place(*, slot_id: int, client_id: uuid.UUID, annotator: User) -> Place | None:
    """Return the slot with what a submission needs to know, or None; one query."""
    row = one_row(_LOOK_UP, {"slot": slot_id, "me": annotator.pk, "client_id": client_id})
    if row is None:
        return None
    item_id, *values, slot_role, order = row[:-5]
    membership_id, role, positions, response_ids, earlier = row[-5:]
    told = dict(zip(_CAMPAIGN_FIELDS, values, strict=True))
    told["extras"] = json.loads(told["extras"])
    by_position = dict(zip(positions, response_ids, strict=True))
    return Place(
        slot_id=slot_id,
        item_id=item_id,
        role=ItemRole(slot_role),
        campaign=(campaign := Campaign.from_db(None, _CAMPAIGN_FIELDS, list(told.values()))),
        membership=Membership(
            id=membership_id, user_id=annotator.pk, project_id=campaign.project_id, role=role
        )
        if role
        else None,
        shown=[by_position[position] for position in order],
        earlier=earlier,
    )


def submit(
    *,
    slot_id: int,
    token: int,
    client_id: uuid.UUID,
    annotator: User,
    answer: Answer,
    place: Place | None = None,
) -> Judgement:
    """Store the judgement and fill its slot; the same client id again returns the stored one.

    One query after ``place``, which a caller that has looked already hands in. Errors: ProductError
    for an answer that does not fit the item, Conflict when the slot is no longer held under this
    token. In both cases nothing is changed.
    """
    place = place or find_place(slot_id=slot_id, client_id=client_id, annotator=annotator)
    if place is None or place.membership is None:
        raise ProductError("There is no such task here. Take the next one.")
    if place.earlier and (earlier := _replayed(client_id, annotator, slot_id)) is not None:
        return earlier
    _check(answer, campaign=place.campaign, response_ids=place.shown)
    values = {
        "slot": slot_id,
        "token": token,
        "me": annotator.pk,
        "client_id": client_id,
        "ranking": None if answer.ranking is None else json.dumps(answer.ranking),
        "thumb": answer.thumb,
        "strength": answer.strength,
        "both_bad": answer.both_bad,
        "comment": answer.comment,
        "ratings": json.dumps(answer.ratings),
        "safety": json.dumps(answer.safety),
        "reasons": answer.reasons,
        "correction": answer.correction,
        "corrected": answer.corrected,
        "shown": place.shown,
        "seconds": answer.seconds,
    }
    try:
        filled = one_row(_FILL, values)
        if filled is None:
            raise Conflict(
                "This task ran out of time and went to somebody else, or you have already "
                "judged it. Nothing was stored; take the next one."
            )
    except (IntegrityError, Conflict):
        # A double click: both requests passed the first look, and the other one stored it.
        if (earlier := _replayed(client_id, annotator, slot_id)) is not None:
            return earlier
        raise
    judgement = Judgement(
        id=filled[0],
        created_at=filled[1],
        client_id=client_id,
        slot_id=slot_id,
        item_id=place.item_id,
        campaign_id=place.campaign.pk,
        annotator=annotator,
        ranking=answer.ranking,
        thumb=answer.thumb,
        strength=answer.strength,
        both_bad=answer.both_bad,
        comment=answer.comment,
        ratings={str(response): levels for response, levels in answer.ratings.items()},
        safety={str(response): label for response, label in answer.safety.items()},
        reasons=answer.reasons,
        correction=answer.correction,
        corrected_id=answer.corrected,
        shown=place.shown,
        seconds=answer.seconds,
    )
    judgement._state.adding = False
    return judgement


def _replayed(client_id: uuid.UUID, annotator: User, slot_id: int) -> Judgement | None:
    earlier = Judgement.objects.filter(client_id=client_id).first()
    if earlier is None:
        return None
    if earlier.annotator_id != annotator.pk or earlier.slot_id != slot_id:
        raise Conflict("This client id was used for another judgement. Send a fresh UUID.")
    return earlier


def _check(answer: Answer, *, campaign: Campaign, response_ids: list[int]) -> None:
    """Refuse an answer that is not whole, not about these responses, or not what was asked."""
    for name, text, most in (
        ("comment", answer.comment, MAX_COMMENT),
        ("correction", answer.correction, MAX_CORRECTION),
    ):
        if len(text) > most:
            raise TooLarge(
                f"The {name} has {len(text):,} characters; {most:,} is the most. Shorten it."
            )
    if answer.ranking is None and (answer.strength is not None or answer.both_bad):
        raise ProductError("“strength” and “both_bad” go with a ranking. Leave them out.")
    if campaign.kind == Campaign.Kind.THUMBS:
        if answer.thumb not in (-1, 1) or answer.ranking is not None:
            raise ProductError("Send “thumb” as 1 (up) or -1 (down), and no ranking.")
    elif campaign.kind == Campaign.Kind.RATING:
        if answer.thumb is not None or answer.ranking is not None:
            raise ProductError("Send “ratings”, and neither a ranking nor a thumb.")
    else:
        _check_ranking(answer, response_ids)
    extras.check(
        extras.Given(
            ratings=answer.ratings,
            safety=answer.safety,
            reasons=answer.reasons,
            comment=answer.comment,
            correction=answer.correction,
            corrected=answer.corrected,
        ),
        asked=extras.stored(campaign.extras),
        response_ids=response_ids,
    )
    if (
        answer.corrected is not None
        and Response.objects.filter(pk=answer.corrected, text=answer.correction).exists()
    ):
        raise ProductError("The correction says what the response says. Change it, or leave it.")


def _check_ranking(answer: Answer, response_ids: list[int]) -> None:
    if answer.ranking is None or answer.thumb is not None:
        raise ProductError("Send a “ranking” (groups of response ids, best first), and no thumb.")
    named = [response_id for group in answer.ranking for response_id in group]
    if any(not group for group in answer.ranking):
        raise ProductError("A group of the ranking is empty. Leave it out.")
    if unknown := sorted(set(named) - set(response_ids)):
        raise ProductError(
            f"The ranking names responses that this task does not have: {unknown[:5]}."
        )
    if len(named) != len(set(named)):
        raise ProductError("The ranking names a response more than once. Name each one once.")
    if missing := sorted(set(response_ids) - set(named)):
        raise ProductError(f"The ranking leaves out the responses {missing}. Place every one.")
    if answer.strength is not None and answer.strength not in (1, 2, 3):
        raise ProductError("“strength” is 1 (slightly), 2 (clearly) or 3 (significantly).")
    if answer.both_bad and len(answer.ranking) != 1:
        raise ProductError("“both_bad” goes with a tie of all responses.")


@transaction.atomic
def skip(*, slot_id: int, token: int, annotator: User, reason: SkipReason, note: str = "") -> None:
    """Give the slot back for somebody else; the item does not come back to this annotator."""
    slot = Slot.objects.filter(
        pk=slot_id, holder=annotator, token=token, state=Slot.State.LEASED
    ).first()
    if slot is None:
        raise Conflict("This task is no longer yours. Take the next one.")
    Skip.objects.get_or_create(
        item_id=slot.item_id,
        annotator=annotator,
        defaults={"reason": reason, "note": note[:500]},
    )
    freed = Slot.objects.filter(pk=slot_id, token=token, state=Slot.State.LEASED).update(
        state=Slot.State.OPEN,
        holder=None,
        lease_expires_at=None,
        leased_at=None,
        # What was meant for one person alone goes to anybody; gold and the like stay theirs.
        reserved_for=None if slot.role == ItemRole.NORMAL else slot.reserved_for_id,
    )
    if not freed:
        raise Conflict("This task is no longer yours. Take the next one.")


def last_undoable(*, campaign: Campaign, annotator: User) -> Judgement | None:
    """Return the annotator's latest standing judgement here if it is recent enough to take back."""
    latest = (
        Judgement.objects.standing()
        .filter(campaign=campaign, annotator=annotator, created_at__gt=Now() - UNDO_WINDOW)
        .order_by("-id")
        .first()
    )
    return latest


@transaction.atomic
def undo(*, campaign: Campaign, annotator: User) -> Task:
    """Take back the last judgement within the window and hold its slot again; the record stays."""
    judgement = last_undoable(campaign=campaign, annotator=annotator)
    if judgement is None:
        minutes = int(UNDO_WINDOW.total_seconds() // 60)
        raise Conflict(f"There is no judgement of yours from the last {minutes} minutes to undo.")
    retracted = Judgement.objects.filter(pk=judgement.pk, retracted_at__isnull=True).update(
        retracted_at=Now(), retracted_by=annotator, retracted_why="undone by its annotator"
    )
    if not retracted:
        raise Conflict("This judgement was already undone.")
    # The task in hand goes back unjudged: one lease per annotator and campaign.
    Slot.objects.filter(campaign=campaign, holder=annotator, state=Slot.State.LEASED).update(
        state=Slot.State.OPEN, holder=None, lease_expires_at=None, leased_at=None
    )
    Slot.objects.filter(pk=judgement.slot_id, state=Slot.State.FILLED).update(
        state=Slot.State.LEASED,
        token=F("token") + 1,
        leased_at=Now(),
        lease_expires_at=lease_end(),
    )
    again = _take(campaign, annotator)
    assert again is not None
    return again
