"""Annotators who are paused in a campaign: by the trust test or by a lead, until a lead ends it."""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Exists, F, Max, OuterRef, Subquery
from django.db.models.functions import Coalesce, Now

from accounts.errors import Conflict, ProductError
from accounts.models import User
from accounts.services import audit
from feedback import adjudication, gold
from feedback.models import Campaign, Judgement, Pause, Slot
from feedback.trust import FALSE_ALARM, Standing, assess

# Fewer new judgements than this are left for the next look.
FEWEST_NEW = 5
# The test looks at the newest so many judgements of a campaign.
MOST_TESTED = 20_000


@transaction.atomic
def pause(
    *,
    campaign: Campaign,
    annotator: User,
    why: str,
    by: User | None = None,
    figures: dict[str, Any] | None = None,
) -> Pause:
    """Pause an annotator here and give back what they hold; Conflict if they are paused."""
    if not why.strip():
        raise ProductError("Say why; the annotator's lead will ask.")
    try:
        with transaction.atomic():
            paused = Pause.objects.create(
                campaign=campaign,
                annotator=annotator,
                why=why.strip()[:500],
                figures=figures or {},
                started_by=by,
            )
    except IntegrityError:
        raise Conflict(f"{annotator.username} is paused here already.") from None
    Slot.objects.filter(campaign=campaign, holder=annotator, state=Slot.State.LEASED).update(
        state=Slot.State.OPEN, holder=None, lease_expires_at=None, leased_at=None
    )
    audit(
        project=campaign.project,
        by=by,
        action="annotator.pause",
        target=f"{annotator.username} in {campaign.name}",
        why=paused.why,
        **paused.figures,
    )
    return paused


@transaction.atomic
def lift(*, paused: Pause, by: User, why: str) -> None:
    """Let the annotator go on; what they judged before no longer counts against them."""
    if not why.strip():
        raise ProductError("Say why they may go on.")
    ended = Pause.objects.filter(pk=paused.pk, ended_at=None).update(
        ended_at=Now(), ended_by=by, ended_why=why.strip()[:500]
    )
    if not ended:
        raise Conflict("This pause was ended already.")
    audit(
        project=paused.campaign.project,
        by=by,
        action="annotator.resume",
        target=f"{paused.annotator.username} in {paused.campaign.name}",
        why=why.strip()[:500],
    )


def standing_pause(*, campaign: Campaign, annotator: User) -> Pause | None:
    """Return why this annotator gets no task here, or None; asked only when a claim gave none."""
    return Pause.objects.standing().filter(campaign=campaign, annotator=annotator).first()


def forgiven(campaign: Campaign) -> set[tuple[str, int]]:
    """Return what was judged before a pause that a lead has ended, as (annotator, item)."""
    ended = Pause.objects.filter(
        campaign=campaign, annotator=OuterRef("annotator"), ended_at__gte=OuterRef("created_at")
    )
    rows = Judgement.objects.standing().filter(
        Exists(ended), campaign=campaign, annotator__pauses__campaign=campaign
    )
    return set(rows.values_list("annotator__username", "item_id"))


def watch_campaigns() -> int:
    """Test every campaign with new judgements, and pause whom its policy says; return how many."""
    newest = Judgement.objects.filter(campaign=OuterRef("pk")).order_by("-id").values("id")[:1]
    waiting = (
        Campaign.objects.filter(state=Campaign.State.OPEN, trust=Campaign.Trust.PAUSE)
        .annotate(newest=Coalesce(Subquery(newest), 0))
        .filter(newest__gte=F("tested_to") + FEWEST_NEW)
        .select_related("project")
    )
    return sum(len(watch_campaign(campaign)) for campaign in waiting)


def watch_campaign(campaign: Campaign) -> list[Pause]:
    """Run the sequential test over a campaign; pause those over whom it raises the alarm."""
    from feedback.quality import hidden_repeats, judged_in, repeats

    seen = Judgement.objects.filter(campaign=campaign).aggregate(newest=Max("id"))["newest"] or 0
    claimed = Campaign.objects.filter(pk=campaign.pk, tested_to__lt=seen).update(tested_to=seen)
    if not claimed:
        return []  # another worker is at it
    judged = judged_in(campaign, most=MOST_TESTED)
    hidden = hidden_repeats(campaign) if campaign.kind != Campaign.Kind.RATING else set()
    again = repeats(campaign) if hidden else {}
    standings = assess(
        judged,
        known=gold.known_truths(campaign),
        decided=adjudication.decided_truths(campaign),
        forgiven=forgiven(campaign),
        graded=gold.graded(campaign),
        again={key: alike for key, alike in again.items() if key[1] in hidden},
    )
    alarms = {one.annotator: one for one in standings if one.state == "alarm"}
    paused = []
    for user in User.objects.filter(username__in=alarms):
        standing = alarms[user.username]
        try:
            paused.append(
                pause(
                    campaign=campaign,
                    annotator=user,
                    why=f"The trust test says: {', '.join(standing.flags)}.",
                    figures=_figures(standing),
                )
            )
        except Conflict:
            continue
    return paused


def _figures(standing: Standing) -> dict[str, Any]:
    """Return what the test had seen, for the lead who looks at it."""
    return {
        "flags": list(standing.flags),
        "right": None if standing.right is None else round(standing.right, 3),
        "false_alarm": FALSE_ALARM,
        "tests": {
            name: {"log_ratio": round(trial.log_ratio, 2), "judgements": trial.n}
            for name, trial in (
                ("competence", standing.competence),
                ("left side", standing.left),
                ("right side", standing.right_side),
            )
            if trial.state == "alarm"
        },
    }
