"""Take judgements back: what they went into is named, marked, and can be made again without them.

A retraction is one transaction. The judgements are marked, their slots are freed for somebody
else, so that an item still gets exactly N; the slots of a withdrawn prompt are closed instead.
Snapshots stay as they are and are marked stale. Erasure also removes the texts: from the rows of
the database at once, and the snapshots' files right after the commit (``erase_files`` finds what a
crash left). Weights that learned from them cannot forget; they are listed, and made again.
"""

from __future__ import annotations

import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from django.db import transaction
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Now

from accounts.errors import Conflict, ProductError
from accounts.models import Project, User
from accounts.services import audit
from feedback.drafts import erase_drafts
from feedback.models import (
    Campaign,
    CompletionFeedback,
    Item,
    Judgement,
    JudgementQuerySet,
    Prompt,
    Response,
    Skip,
    SkipReason,
    Slot,
)
from inference.models import Alias, Completion, Version
from training import runs, storage
from training.leases import lock_project
from training.lineage import Trace, snapshots_with
from training.models import Retraction, Run, RunQuerySet, Snapshot
from training.snapshots import create_snapshot

MAX_WHY = 300
# What of a run directory may hold tokens of the texts that it learned from.
RUN_LEFTOVERS = ("probe.safetensors", "checkpoints")

Subject = Judgement | User | Prompt


@dataclass(frozen=True, kw_only=True)
class Affected:
    """What would be touched: standing judgements, and all that was made of them."""

    judgements: int
    snapshots: QuerySet[Snapshot]
    runs: RunQuerySet
    versions: QuerySet[Version]
    aliases: QuerySet[Alias]


def affected_by(
    *, project: Project, subject: Subject, campaign: Campaign | None = None
) -> Affected:
    """Return what a retraction would touch, without touching it."""
    if isinstance(subject, Judgement):
        used = snapshots_with(project, judgement=subject)
    elif isinstance(subject, Prompt):
        used = snapshots_with(project, prompt=subject)
    else:
        used = snapshots_with(project, annotator=subject, campaign=campaign)
    trace = Trace(snapshots=set(used)).down()
    versions = Version.objects.filter(pk__in=trace.versions, project=project)
    return Affected(
        judgements=_judgements(project, subject, campaign).standing().count(),
        snapshots=Snapshot.objects.filter(pk__in=used),
        runs=Run.objects.filter(pk__in=trace.runs).select_related("version"),
        versions=versions.order_by("number"),
        aliases=Alias.objects.filter(project=project, version__in=versions).select_related(
            "version"
        ),
    )


def _judgements(project: Project, subject: Subject, campaign: Campaign | None) -> JudgementQuerySet:
    rows = Judgement.objects.filter(campaign__project=project)
    if isinstance(subject, Judgement):
        return rows.filter(pk=subject.pk)
    if isinstance(subject, Prompt):
        return rows.filter(item__prompt=subject)
    rows = rows.filter(annotator=subject)
    return rows if campaign is None else rows.filter(campaign=campaign)


@transaction.atomic
def retract(
    *,
    project: Project,
    subject: Subject,
    why: str,
    by: User | None,
    campaign: Campaign | None = None,
    erase: bool = False,
) -> Retraction:
    """Take back a judgement, an annotator's judgements or a prompt; all of it or nothing.

    Conflict when there is nothing left to take back.
    """
    why = " ".join(why.split())
    if not why:
        raise ProductError("Say why it is taken back; the audit trail keeps it.")
    if len(why) > MAX_WHY:
        raise ProductError(f"Say why in at most {MAX_WHY} characters.")
    if campaign is not None and campaign.project_id != project.pk:
        raise ProductError("The campaign belongs to another project.")
    lock_project(project.pk)
    subject.refresh_from_db()
    if isinstance(subject, Prompt):
        _hold_slots(subject)
    affected = affected_by(project=project, subject=subject, campaign=campaign)
    rows = _judgements(project, subject, campaign)
    if not affected.judgements and not _something_left(rows, subject, erase):
        raise Conflict("There is nothing left to take back here: it was done before.")
    retraction = Retraction(
        project=project,
        kind=_kind(subject),
        judgement=subject if isinstance(subject, Judgement) else None,
        annotator=subject if isinstance(subject, User) else None,
        prompt=subject if isinstance(subject, Prompt) else None,
        campaign=campaign,
        why=why,
        erase=erase,
        judgements=affected.judgements,
        aliases=[alias.name for alias in affected.aliases],
        by=by,
    )
    retraction.full_clean()
    retraction.save()
    retraction.snapshots.set(affected.snapshots)
    retraction.versions.set(affected.versions)
    retraction.runs.set(
        affected.runs.filter(state__in=(*Run.LIVE, Run.State.SUCCEEDED), replaced_by=None)
    )
    for run in affected.runs.live():
        with suppress(Conflict):  # it ended meanwhile
            runs.cancel_run(run=run, by=by)
    ids = list(rows.standing().values_list("pk", flat=True))
    Judgement.objects.standing().filter(pk__in=ids).update(
        retracted_at=Now(), retracted_by=by, retracted_why=why
    )
    if isinstance(subject, Prompt):
        _withdraw(subject)
    else:
        _free_slots(ids)
    affected.snapshots.filter(stale_at=None).update(stale_at=Now())
    if erase:
        _erase_texts(rows, subject, project, campaign)
        affected.snapshots.update(state=Snapshot.State.ERASED)
        transaction.on_commit(erase_files)
    audit(
        project=project,
        by=by,
        action="retraction.erase" if erase else "retraction.make",
        target=retraction.subject,
        retraction=retraction.pk,
        judgements=retraction.judgements,
        why=why,
    )
    return retraction


def _kind(subject: Subject) -> Retraction.Kind:
    if isinstance(subject, Judgement):
        return Retraction.Kind.JUDGEMENT
    return Retraction.Kind.PROMPT if isinstance(subject, Prompt) else Retraction.Kind.ANNOTATOR


def _something_left(rows: JudgementQuerySet, subject: Subject, erase: bool) -> bool:
    """Say whether a retraction does anything where no judgement stands."""
    if isinstance(subject, Prompt):
        return subject.withdrawn_at is None or (erase and subject.erased_at is None)
    return erase and rows.filter(erased_at=None).exists()


def _free_slots(ids: list[int]) -> None:
    """Give the slots to somebody else, so that each item still gets N standing judgements."""
    judged = Judgement.objects.filter(pk__in=ids)
    Skip.objects.bulk_create(
        [
            Skip(item_id=item, annotator_id=who, reason=SkipReason.OTHER, note="retracted")
            for item, who in judged.values_list("item_id", "annotator_id")
        ],
        ignore_conflicts=True,
        batch_size=5_000,
    )
    # A slot of a gold item or a repeat was for this annotator alone: it stays filled.
    freed = Slot.objects.filter(pk__in=judged.values("slot"), reserved_for=None)
    freed.filter(state=Slot.State.FILLED).update(
        state=Slot.State.OPEN, holder=None, lease_expires_at=None, leased_at=None
    )


def _hold_slots(prompt: Prompt) -> None:
    """Let nobody submit to the prompt's slots until commit: what came before is taken back, too."""
    held = Slot.objects.filter(item__prompt=prompt).order_by("pk").select_for_update(of=("self",))
    list(held.values_list("pk", flat=True))


def _withdraw(prompt: Prompt) -> None:
    """Close the prompt's slots: nobody is asked about it again.

    Slots that were never judged go; the others count as filled by who judged them last.
    """
    Prompt.objects.filter(pk=prompt.pk, withdrawn_at=None).update(withdrawn_at=Now())
    slots = Slot.objects.filter(item__prompt=prompt).exclude(state=Slot.State.FILLED)
    slots.filter(judgements=None).delete()
    Item.objects.filter(prompt=prompt, slots=None, responses=None).delete()
    slots.filter(state=Slot.State.LEASED).update(state=Slot.State.FILLED, lease_expires_at=None)
    last = Judgement.objects.filter(slot=OuterRef("pk")).order_by("-id").values("annotator")[:1]
    slots.update(state=Slot.State.FILLED, holder=Subquery(last), lease_expires_at=None)


def _erase_texts(
    rows: JudgementQuerySet, subject: Subject, project: Project, campaign: Campaign | None
) -> None:
    """Remove what was written; who chose what stays, as the counts are made of it."""
    rows.filter(erased_at=None).update(comment="", correction="", corrected=None, erased_at=Now())
    said = CompletionFeedback.objects.filter(completion__project=project)
    if isinstance(subject, Prompt):
        responses = Response.objects.filter(item__prompt=subject)
        about = Q(pk__in=responses.exclude(completion=None).values("completion"))
        if subject.messages:  # asked in an evaluation or in use, in the same words
            about |= Q(messages=subject.messages)
        completions = Completion.objects.filter(about, project=project)
        ids = list(completions.values_list("pk", flat=True))
        said = said.filter(completion__in=ids)
        Completion.objects.filter(pk__in=ids).update(messages=[], text="")
        responses.update(text="")
        erase_drafts(prompt=subject)
        # The digest of a text tells who knows the text; the same one may be asked anew.
        Prompt.objects.filter(pk=subject.pk).update(
            messages=[], documents=[], digest=f"erased:{uuid.uuid4().hex}", erased_at=Now()
        )
    elif isinstance(subject, User) and campaign is None:
        said = said.filter(user=subject)
    else:
        return
    said.update(comment="", correction="", erased_at=Now())


def erase_files() -> int:
    """Delete the files of erased snapshots, and what their runs kept of texts; idempotent.

    Return how many folders went.
    """
    gone = 0
    for snapshot in Snapshot.objects.filter(state=Snapshot.State.ERASED).exclude(path=""):
        gone += storage.delete(snapshot.path)
        for run in snapshot.runs.exclude(state__in=Run.LIVE):
            for name in RUN_LEFTOVERS:
                _remove(run.directory / name)
        Snapshot.objects.filter(pk=snapshot.pk).update(path="")
    return gone


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# Made again without them


@transaction.atomic
def rebuild(*, retraction: Retraction, by: User | None) -> None:
    """Queue the affected snapshots anew; their runs follow when they are ready. Once only."""
    begun = Retraction.objects.filter(pk=retraction.pk, rebuild_at=None).update(
        rebuild_at=Now(), rebuild_by=by
    )
    if not begun:
        return
    for snapshot in retraction.snapshots.filter(replaced_by=None).order_by("pk"):
        again = create_snapshot(
            project=snapshot.project,
            campaigns=list(snapshot.campaigns.all()),
            by=by,
            heldout_fraction=snapshot.heldout_fraction,
            kind=snapshot.kind,
            options=snapshot.options,
        )
        Snapshot.objects.filter(pk=again.pk).update(replaces=snapshot)
    audit(
        project=retraction.project,
        by=by,
        action="retraction.rebuild",
        target=retraction.subject,
        retraction=retraction.pk,
    )


def advance_rebuilds() -> int:
    """Queue every run whose new snapshot and new start are there; return how many."""
    open_ones = Retraction.objects.filter(rebuild_at__isnull=False, rebuilt_at=None)
    return sum(_advance(pk) for pk in open_ones.values_list("pk", flat=True))


@transaction.atomic
def _advance(retraction_id: int) -> int:
    locked = Retraction.objects.select_for_update(skip_locked=True, of=("self",))
    retraction = locked.filter(pk=retraction_id, rebuilt_at=None).first()
    if retraction is None:
        return 0  # another worker has it in hand
    started, waiting, notes = 0, False, []
    replacements = {row.pk: _newest(row) for row in retraction.snapshots.all()}
    for new in replacements.values():
        if new.state == Snapshot.State.FAILED:
            notes.append(f"Snapshot {new.pk} could not be built: {new.reason}")
        elif new.state in (Snapshot.State.QUEUED, Snapshot.State.BUILDING):
            waiting = True
    old = retraction.runs.select_related("snapshot", "start_version").order_by("pk")
    for run in old.filter(replaced_by=None):
        snapshot = replacements.get(run.snapshot_id, run.snapshot)
        if snapshot.state != Snapshot.State.READY:
            continue
        try:
            start = _new_start(retraction, run)
        except ProductError as error:
            notes.append(f"Run {run.pk} is not done over: {error.message}")
            continue
        if start is None:
            waiting = True
            continue
        try:
            with transaction.atomic():
                again = runs.start_run(
                    snapshot=snapshot,
                    start_version=start,
                    method=run.method,
                    arguments=run.arguments,
                    seed=run.seed,
                    by=retraction.rebuild_by,
                )
                Run.objects.filter(pk=again.pk).update(replaces=run)
        except ProductError as error:
            notes.append(f"Run {run.pk} is not done over: {error.message}")
            continue
        started += 1
    Retraction.objects.filter(pk=retraction.pk).update(
        rebuild_note="\n".join(notes), rebuilt_at=None if waiting else Now()
    )
    return started


def _newest(snapshot: Snapshot) -> Snapshot:
    """Return what stands for a snapshot now: what replaced it, or what replaced that."""
    while (again := Snapshot.objects.filter(replaces=snapshot).first()) is not None:
        snapshot = again
    return snapshot


def _new_start(retraction: Retraction, run: Run) -> Version | None:
    """Return what to start from: a version that learned from it is replaced by its successor.

    None while that one is still being trained; ProductError when there will be none.
    """
    if not retraction.versions.filter(pk=run.start_version_id).exists():
        return run.start_version
    before = Run.objects.filter(version=run.start_version_id, replaced_by__isnull=False).first()
    if before is None:
        pending = retraction.runs.filter(version=run.start_version_id).exclude(pk=run.pk).exists()
        if pending:
            return None
        raise ProductError(f"{run.start_version.name}, which it started from, has no new training.")
    again = before.replaced_by
    if again.is_live:
        return None
    if again.version is None:
        raise ProductError(f"run {again.pk}, which it would start from, gave no version.")
    return again.version
