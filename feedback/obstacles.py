"""Why an annotator gets no task though some are left; asked only when a claim gave none."""

from __future__ import annotations

from dataclasses import dataclass

from accounts.errors import Conflict
from accounts.models import User
from feedback import code_books, pauses
from feedback.models import Campaign, CodeBook, Pause


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """What stands between an annotator and the next task, if anything."""

    pause: Pause | None = None
    code_book: CodeBook | None = None


def obstacle(*, campaign: Campaign, annotator: User) -> Obstacle:
    """Return what bars the annotator here; two queries."""
    return Obstacle(
        pause=pauses.standing_pause(campaign=campaign, annotator=annotator),
        code_book=code_books.unconfirmed(campaign=campaign, annotator=annotator),
    )


def refuse(*, campaign: Campaign, annotator: User) -> None:
    """Raise Conflict with a kind sentence where something bars the annotator here."""
    found = obstacle(campaign=campaign, annotator=annotator)
    if found.pause is not None:
        raise Conflict(
            "Your judging in this campaign is paused until a lead has had a look. What you judged "
            "is stored, and your other campaigns go on.",
            paused=True,
        )
    if found.code_book is not None:
        raise Conflict(
            "The code book has a new version. Read it and confirm it before the next task.",
            code_book=found.code_book.pk,
        )
