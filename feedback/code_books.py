"""A campaign's code book: versions that stay, and who has read which."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from django.db import transaction
from django.db.models import Max

from accounts.errors import Conflict, ProductError, TooLarge
from accounts.models import User
from accounts.services import audit
from feedback.models import Campaign, CodeBook, CodeBookConfirmation

MAX_CODE_BOOK = 20_000


@transaction.atomic
def publish(
    *, campaign: Campaign, text: str, by: User, changed: str = "", to_confirm: bool = True
) -> CodeBook:
    """Return the new version, which annotators then see beside every task.

    With ``to_confirm`` nobody gets another task before having confirmed it; the task in hand stays.
    What a campaign was made with becomes version 1, which nobody need confirm.
    """
    text = text.replace("\r\n", "\n").replace("\x00", "").strip()
    if not text:
        raise ProductError("Write what makes a response better here.")
    if len(text) > MAX_CODE_BOOK:
        raise TooLarge(
            f"A code book has at most {MAX_CODE_BOOK:,} characters; this has {len(text):,}."
        )
    held = Campaign.objects.select_for_update().select_related("project").get(pk=campaign.pk)
    newest = held.code_books.aggregate(number=Max("number"))["number"] or 0
    if not newest and held.instructions:
        CodeBook.objects.create(
            campaign=held, number=1, text=held.instructions, to_confirm=False, by=held.created_by
        )
        newest = 1
    if text == held.instructions.strip():
        raise Conflict("This is the code book as it stands. Change something first.")
    book = CodeBook.objects.create(
        campaign=held,
        number=newest + 1,
        text=text,
        changed=changed.strip()[:300],
        to_confirm=to_confirm,
        by=by,
    )
    Campaign.objects.filter(pk=held.pk).update(instructions=text)
    audit(
        project=held.project,
        by=by,
        action="code_book.publish",
        target=held.name,
        number=book.number,
        to_confirm=to_confirm,
    )
    book.refresh_from_db()
    return book


def unconfirmed(*, campaign: Campaign, annotator: User) -> CodeBook | None:
    """Return the newest version if this annotator must confirm it and has not; one query."""
    newest = campaign.code_books.order_by("-number").first()
    if newest is None or not newest.to_confirm:
        return None
    if CodeBookConfirmation.objects.filter(code_book=newest, annotator=annotator).exists():
        return None
    return newest


def confirm(*, code_book: CodeBook, annotator: User) -> None:
    """Keep that the annotator has read this version; Conflict when there is a newer one."""
    if CodeBook.objects.filter(
        campaign=code_book.campaign_id, number__gt=code_book.number
    ).exists():
        raise Conflict("There is a newer version by now. Reload the page to read it.")
    CodeBookConfirmation.objects.get_or_create(code_book=code_book, annotator=annotator)


@dataclass(frozen=True)
class Line:
    """One line of a difference between two versions."""

    kind: Literal["same", "added", "removed"]
    text: str


def difference(older: str, newer: str) -> list[Line]:
    """Return the lines of both versions, marked; unchanged stretches are cut to three lines."""
    kinds: dict[str, Literal["same", "added", "removed"]] = {"+": "added", "-": "removed"}
    rows = difflib.unified_diff(older.splitlines(), newer.splitlines(), n=3, lineterm="")
    return [
        Line(kinds.get(row[:1], "same"), row[1:])
        for row in rows
        if not row.startswith(("+++", "---", "@@"))
    ]
