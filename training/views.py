"""Pages of snapshots, runs and evaluations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.http import urlencode
from django.views.decorators.http import require_GET, require_POST

from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Membership, Role
from accounts.pages import asked, ordered, page_of, refused, whole
from inference.models import Version
from training import (
    charts,
    cleaning,
    evaluation,
    gate,
    lengths,
    machines,
    measures,
    preflight,
    runs,
    snapshots,
    storage,
)
from training.formats import fitting
from training.forms import (
    METHODS,
    ArgumentsForm,
    EvaluationForm,
    RunForm,
    SnapshotForm,
    take_proposal,
)
from training.length_chart import length_chart
from training.models import Evaluation, Run, Snapshot
from training.options import METHODS_FOR, WHAT_ROWS_ARE, Kind, Margins, Options, Pairs, Pii, Votes

LIMITS = ("max_length", "max_prompt_length")
LOOK_AGAIN = "Some fields need another look; see below."
PREVIEW_ROWS = 5
PREVIEW_SCAN = 500
LENGTHS = ("prompt", "chosen", "rejected")
INTERVAL = "95 % interval"
RUN_COLUMNS = {
    "created": "id",
    "state": "state",
    "snapshot": "snapshot_id",
    "from": "start_version__number",
    "version": "version__number",
}
# Names of exclusions as a person says them; they are the keys of the ledger.
EXCLUSIONS = {
    "below_agreement": "too few annotators agreed",
    "both_bad": "all responses were called bad",
    "calibration": "part of a calibration session",
    "correction": "a correction, which was not asked for",
    "equal_texts": "the responses were the same text",
    "pii": "holds personal data",
    "language": "in a language that was not asked for",
    "evaluation_leak": "used or marked to evaluate on, so not to be learnt from",
    "heldout_leak": "the prompt was held out earlier, or judged by a held-out annotator",
    "gold": "a test with a known answer",
    "no_rating": "nothing that is rated on a scale",
    "no_majority": "as many votes for as against",
    "no_verdict": "a comment alone",
    "outvoted": "most others said the opposite",
    "overruled": "a lead decided otherwise",
    "paused_annotator": "by an annotator who is paused",
    "ranking": "a ranking, which calls no single answer good or bad",
    "rating": "ratings, without two answers that an attribute orders",
    "repeat": "a repeated item, asked to measure consistency",
    "retracted": "taken back",
    "skipped": "skipped by an annotator",
    "thumb": "a thumb that gives no row of this kind",
    "thumb_down": "a thumb down, nothing to imitate",
    "tie": "a tie of all responses",
    "too_long": "longer than the most characters that were asked for",
}


# Snapshots


@login_required
def snapshot_index(request: HttpRequest, slug: str) -> HttpResponse:
    """List snapshots; take one of chosen campaigns."""
    membership = get_membership(request, slug, Role.LEAD)
    form = SnapshotForm(
        request.POST if request.method == "POST" else None,
        project=membership.project,
        initial={
            "campaigns": request.GET.getlist("campaign"),
            "attributes": request.GET.get("attributes", ""),
        },
    )
    rows = Snapshot.objects.filter(project=membership.project).select_related("created_by")
    context = {
        "page": page_of(request, rows.prefetch_related("campaigns")),
        "form": form,
    }
    if request.method != "POST":
        return render(request, "training/snapshots.html", context)
    if not form.is_valid():
        return refused(request, "training/snapshots.html", context, LOOK_AGAIN)
    try:
        made = snapshots.create_snapshot(
            project=membership.project,
            campaigns=form.cleaned_data["campaigns"],
            by=membership.user,
            heldout_fraction=form.cleaned_data["heldout_fraction"],
            kind=form.cleaned_data["kind"],
            options=form.options(),
        )
    except (ProductError, ValidationError) as error:
        return refused(request, "training/snapshots.html", context, error)
    messages.success(request, "The snapshot is being written.")
    return redirect("snapshot", slug, made.pk)


def _snapshot(request: HttpRequest, slug: str, pk: int) -> Snapshot:
    membership = get_membership(request, slug, Role.LEAD)
    rows = Snapshot.objects.filter(project=membership.project).select_related("created_by")
    return get_object_or_404(rows, pk=pk)


@dataclass(frozen=True, kw_only=True)
class LedgerLine:
    """One line of the conservation ledger."""

    label: str
    judgements: int


def _ledger(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the ledger as lines that add up, and whether they do; nothing before it is built."""
    ledger: dict[str, Any] = manifest.get("ledger") or {}
    if not ledger:
        return {}
    lines = [
        LedgerLine(label=EXCLUSIONS.get(key, key.replace("_", " ")), judgements=number)
        for key, number in ledger["excluded"].items()
    ]
    accounted = ledger["exported"] + sum(line.judgements for line in lines)
    return ledger | {
        "lines": lines,
        "accounted": accounted,
        "balances": accounted == ledger["judgements"],
    }


def _options(snapshot: Snapshot) -> list[str]:
    """Return what was chosen, as words; the defaults go without saying."""
    options = Options.read(snapshot.options)
    said = [
        "with feedback on answers in use" if options.feedback else "",
        "" if options.pairs == Pairs.ALL else str(options.pairs.label),
        "" if options.votes == Votes.INDIVIDUAL else str(options.votes.label),
        f"at least {options.min_agreement:.0%} agreement" if options.min_agreement else "",
        f"at most {options.max_characters:,} characters" if options.max_characters else "",
        f"languages: {', '.join(options.languages)}" if options.languages else "",
        "" if options.pii == Pii.OFF else f"personal data {options.pii.label}",
        f"{options.heldout_annotators:.0%} of the annotators held out"
        if options.heldout_annotators
        else "",
        "near-duplicate prompts on one side" if options.near else "",
        *(f"{name} × {weight:g}" for name, weight in options.attributes.items()),
        "margins by the lead of the sum" if options.margins == Margins.LEAD else "",
    ]
    if snapshot.kind == Kind.SFT:
        said += [str(one.label) for one in options.imitate]
    return [one for one in said if one]


def _preview(snapshot: Snapshot) -> tuple[list[dict[str, Any]], str]:
    """Return the first row of each of the first prompts in the training part, or what is wrong."""
    try:
        with pq.ParquetFile(storage.local_file(snapshot, "train.parquet")) as file:
            batch = next(file.iter_batches(batch_size=PREVIEW_SCAN), None)
    except OSError:
        return [], "The training part cannot be read: its file is gone from the store."
    except ProductError as error:
        return [], error.message
    first: dict[str, dict[str, Any]] = {}
    for row in batch.to_pylist() if batch is not None else []:
        if len(first) == PREVIEW_ROWS:
            break
        if row.get("ratings"):
            row["scores"] = [
                (scale.get("label", name), row["ratings"][name], scale.get("levels"))
                for name, scale in snapshot.manifest["scales"].items()
                if row["ratings"][name] is not None
            ]
        first.setdefault(row["prompt_id"], row)
    return list(first.values()), ""


def _pairs_query(snapshot: Snapshot) -> str:
    """Return what the snapshot form is filled with to get pairs from the same ratings."""
    scales = ", ".join(f"{name}=1" for name in snapshot.manifest.get("scales", {}))
    campaigns = snapshot.campaigns.values_list("pk", flat=True)
    return urlencode([*(("campaign", one) for one in campaigns), ("attributes", scales)])


def _snapshot_context(snapshot: Snapshot) -> dict[str, Any]:
    ready = snapshot.state == Snapshot.State.READY
    rated = snapshot.kind == Kind.RATINGS
    train = snapshot.manifest.get("lengths", {}).get("train", {})
    preview, files_problem = _preview(snapshot) if ready else ([], "")
    return {
        "snapshot": snapshot,
        "waiting": snapshot.state in (Snapshot.State.QUEUED, Snapshot.State.BUILDING),
        "campaigns": snapshot.campaigns.all(),
        "ledger": _ledger(snapshot.manifest),
        "files": snapshot.manifest.get("files", {}),
        "formats": fitting(snapshot) if ready else [],
        "rows_are": WHAT_ROWS_ARE[Kind(snapshot.kind)],
        "learnable": bool(METHODS_FOR[snapshot.kind]),
        "pairs_query": _pairs_query(snapshot),
        "options": _options(snapshot),
        "agreement": snapshot.manifest.get("agreement", {}),
        "length_rows": [
            ("response" if rated and side == "chosen" else side, train[side])
            for side in LENGTHS
            if train.get(side)
        ],
        "length_bias": train.get("bias"),
        "length_warning": lengths.warning(train.get("bias")),
        "length_chart": length_chart(snapshot.digest, train) if ready and not rated else None,
        "repeats": snapshot.manifest.get("repeats", {}),
        "languages": cleaning.language_lines(snapshot.manifest),
        "pii": snapshot.manifest.get("pii"),
        "preview": preview,
        "files_problem": files_problem,
        "runs": snapshot.runs.select_related("version", "start_version"),
    }


@login_required
@require_GET
def snapshot(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show what a snapshot holds and that nothing got lost on the way into it."""
    found = _snapshot(request, slug, pk)
    return render(request, "training/snapshot.html", _snapshot_context(found))


@login_required
@require_GET
def snapshot_body(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Render the page under its head alone; once it is ready, have the whole page loaded."""
    found = _snapshot(request, slug, pk)
    context = _snapshot_context(found)
    response = render(request, "training/_snapshot_body.html", context)
    if not context["waiting"]:
        response["HX-Refresh"] = "true"
    return response


# Runs


@login_required
@require_GET
def run_index(request: HttpRequest, slug: str) -> HttpResponse:
    """List runs."""
    membership = get_membership(request, slug, Role.LEAD)
    rows = Run.objects.filter(project=membership.project)
    state = request.GET.get("state", "")
    if state in Run.State.values:
        rows = rows.filter(state=state)
    rows = rows.select_related("snapshot", "start_version", "version", "created_by")
    rows, sort = ordered(request, rows, RUN_COLUMNS, default="-created")
    context = {
        "page": page_of(request, rows),
        "sort": sort,
        "state": state,
        "states": Run.State.choices,
    }
    return render(request, "training/runs.html", context)


def _run_new_context(request: HttpRequest, membership: Membership) -> dict[str, Any]:
    """Return the forms of a new run, filled with what was sent and what ``take`` changes of it."""
    data = request.POST.copy() if request.method == "POST" else None
    if data is not None and data.get("take"):
        take_proposal(data)
    wanted = (request.GET if data is None else data).get("method", METHODS[0])
    method = wanted if wanted in METHODS else METHODS[0]
    initial = {
        "snapshot": request.GET.get("snapshot"),
        "start_version": request.GET.get("start_version"),
        "method": method,
    }
    ready = Snapshot.objects.filter(project=membership.project).usable().learnable()
    return {
        "form": RunForm(data, project=membership.project, initial=initial),
        "method": method,
        "arguments": ArgumentsForm(data, method=method),
        "has_snapshot": ready.exists(),
    }


def _preflight(form: RunForm, arguments: ArgumentsForm) -> dict[str, Any]:
    """Return the prediction for what the forms hold, or why there is none."""
    if not (form.is_valid() & arguments.is_valid()):
        return {"preflight_error": "The prediction follows once every field is right."}
    try:
        found = preflight.check_run(
            snapshot=form.cleaned_data["snapshot"],
            start_version=form.cleaned_data["start_version"],
            method=form.cleaned_data["method"],
            arguments=arguments.arguments(),
        )
    except ProductError as error:
        return {"preflight_error": error.message}
    if found is None:
        return {"preflight_error": "This base or snapshot cannot be read, so nothing is foretold."}
    take = json.dumps(found.proposal.changes) if found.proposal else ""
    return {
        "preflight": found,
        "take": take,
        "currency": settings.PRICE_CURRENCY,
        "rendered_at": _rendered_at(form.cleaned_data, arguments.arguments()),
    }


def _rendered_at(chosen: dict[str, Any], arguments: dict[str, Any]) -> str:
    """Return the page that shows the snapshot's rows as this run would read them."""
    snapshot = chosen["snapshot"]
    asked = {"base": chosen["start_version"].base_id, "method": chosen["method"]}
    asked |= {name: arguments[name] for name in LIMITS if name in arguments}
    page = reverse("rendered_row", args=[snapshot.project.slug, snapshot.pk])
    return f"{page}?{urlencode(asked)}"


@login_required
@require_POST
def run_preflight(request: HttpRequest, slug: str) -> HttpResponse:
    """Render what the run in the form would take, as it is being filled in."""
    membership = get_membership(request, slug, Role.ADMIN)
    context = _run_new_context(request, membership)
    context |= _preflight(context["form"], context["arguments"])
    return render(request, "training/_preflight.html", context)


@login_required
def run_new(request: HttpRequest, slug: str) -> HttpResponse:
    """Foretell a training run, then queue it."""
    membership = get_membership(request, slug, Role.ADMIN)
    context = _run_new_context(request, membership)
    form, arguments = context["form"], context["arguments"]
    template = "training/run_new.html"
    if request.method != "POST":
        return render(request, template, context)
    if request.POST.get("check") or request.POST.get("take"):
        return render(request, template, context | _preflight(form, arguments))
    if not (form.is_valid() & arguments.is_valid()):
        return refused(request, template, context, LOOK_AGAIN)
    try:
        started = runs.start_run(
            snapshot=form.cleaned_data["snapshot"],
            start_version=form.cleaned_data["start_version"],
            method=form.cleaned_data["method"],
            arguments=arguments.arguments(),
            seed=form.cleaned_data["seed"],
            by=membership.user,
        )
    except (ProductError, ValidationError) as error:
        return refused(request, template, context | _preflight(form, arguments), error)
    messages.success(request, f"Run {started.pk} waits for a trainer.")
    return redirect("run", slug, started.pk)


def _run(
    request: HttpRequest, slug: str, pk: int, role: Role = Role.LEAD
) -> tuple[Membership, Run]:
    membership = get_membership(request, slug, role)
    rows = Run.objects.filter(project=membership.project).select_related(
        "project", "snapshot", "start_version__base", "version", "created_by"
    )
    return membership, get_object_or_404(rows, pk=pk)


def _seconds_left(run: Run) -> float | None:
    """Return how long the rest of the steps takes at the pace so far; None while unknown."""
    if run.state != Run.State.RUNNING or run.step >= run.total_steps:
        return None
    rows = run.metrics.order_by("step").values_list("step", "values__time")
    first, last = rows.first(), rows.last()
    if first is None or last is None or first[0] == last[0] or not (first[1] and last[1]):
        return None
    pace: float = (last[1] - first[1]) / (last[0] - first[0])
    return max(0.0, pace * (run.total_steps - run.step))


def _status_context(run: Run) -> dict[str, Any]:
    return {"run": run, "seconds_left": _seconds_left(run)}


def _run_context(run: Run) -> dict[str, Any]:
    return _status_context(run) | {
        "charts": charts.run_charts(run),
        "notes": run.notes.all(),
        "symptoms": run.warnings(),
        "evaluation": run.report.get("evaluation") or {},
        "measures": measures.before_and_after(run.report.get("evaluation") or {}),
        "measures_names": ("Before", "After", INTERVAL),
        "outcome": _outcome(run),
    }


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One figure of a run as it was foretold and as it came out."""

    label: str
    foretold: float
    outcome: float | None
    kind: str  # duration, mb or number

    @property
    def difference(self) -> float | None:
        """Return the outcome's distance from the prediction, as a share of the prediction."""
        if self.outcome is None or not self.foretold:
            return None
        return self.outcome / self.foretold - 1


def _outcome(run: Run) -> list[Beside]:
    """Return what preflight foretold beside what the run took; nothing for a run without it."""
    foretold, report = run.prediction, run.report
    if not foretold:
        return []
    whole = passes = None
    if run.state == Run.State.SUCCEEDED and run.attempts == 1:
        whole = run.seconds
        passes = machines.passes_seconds(report) or None
    rows = [
        ("Whole run", "seconds", whole, "duration"),
        ("Training steps", "training_seconds", report.get("seconds"), "duration"),
        ("Reference and measures", "passes_seconds", passes, "duration"),
        ("Peak memory", "peak_memory_mb", report.get("peak_memory_mb"), "mb"),
        ("Steps", "steps", report.get("steps"), "number"),
        (
            "Trained weights",
            "trainable_parameters",
            report.get("trainable_parameters"),
            "number",
        ),
    ]
    return [
        Beside(label=label, foretold=foretold[name], outcome=outcome, kind=kind)
        for label, name, outcome, kind in rows
        if foretold.get(name) is not None
    ]


@login_required
@require_GET
def run(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show a run: the curve first, the JSON last."""
    _, run = _run(request, slug, pk)
    return render(request, "training/run.html", _run_context(run))


@login_required
@require_GET
def run_status(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Render the run's state alone; once it has ended, have the whole page loaded."""
    _, run = _run(request, slug, pk)
    response = render(request, "training/_run_status.html", _status_context(run))
    if not run.is_live:
        response["HX-Refresh"] = "true"
    return response


@login_required
@require_GET
def run_charts(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Render the curves alone; 204 while there is no step after ``?after=``."""
    _, run = _run(request, slug, pk)
    after = whole(request.GET.get("after", ""))
    if run.is_live and after is not None and run.step <= after:
        return HttpResponse(status=204)
    context = {"run": run, "charts": charts.run_charts(run)}
    return render(request, "training/_run_charts.html", context)


def _change_run(
    request: HttpRequest, slug: str, pk: int, change: Callable[..., Any], said: str
) -> HttpResponse:
    """Let an admin change a run, and say what follows or why not."""
    membership, run = _run(request, slug, pk, Role.ADMIN)
    try:
        change(run=run, by=membership.user)
    except ProductError as error:
        return refused(request, "training/run.html", _run_context(run), error)
    messages.success(request, f"Run {run.pk} {said}")
    return redirect("run", slug, pk)


@login_required
@require_POST
def run_cancel(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Stop a run within one step."""
    return _change_run(request, slug, pk, runs.cancel_run, "stops at its next step.")


@login_required
@require_POST
def run_pause(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Stop a run within one step, to go on later from there."""
    return _change_run(request, slug, pk, runs.pause_run, "pauses at its next step.")


@login_required
@require_POST
def run_resume(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Queue a paused run again."""
    return _change_run(request, slug, pk, runs.resume_run, "goes on when a trainer is free.")


@login_required
@require_POST
def run_priority(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Say how soon a waiting run goes."""
    membership, run = _run(request, slug, pk, Role.ADMIN)
    try:
        wanted = whole(asked(request.POST, "priority"))
        if wanted is None:
            raise ProductError("A priority is a whole number between -100 and 100.")
        runs.set_priority(run=run, priority=wanted, by=membership.user)
    except ProductError as error:
        return refused(request, "training/run.html", _run_context(run), error)
    return redirect("run", slug, pk)


@login_required
@require_GET
def run_compare(request: HttpRequest, slug: str) -> HttpResponse:
    """Draw the curves of several runs in one chart a metric: ``?run=1&run=2``."""
    membership = get_membership(request, slug, Role.LEAD)
    numbers = [whole(one) or 0 for one in request.GET.getlist("run")]
    wanted = list(dict.fromkeys(numbers))[: charts.MAX_COMPARED]
    rows = Run.objects.filter(project=membership.project)
    found = rows.select_related("version", "start_version").in_bulk(wanted)
    compared = [found[number] for number in wanted if number in found]
    context = {
        "compared": compared,
        "charts": charts.compare_charts(compared),
        "others": rows.exclude(pk__in=found).select_related("version")[:50],
        "room": len(compared) < charts.MAX_COMPARED,
    }
    return render(request, "training/run_compare.html", context)


@login_required
@require_POST
def run_again(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Queue the same training as a new run."""
    membership, run = _run(request, slug, pk, Role.ADMIN)
    try:
        queued = runs.run_again(run=run, by=membership.user)
    except ProductError as error:
        return refused(request, "training/run.html", _run_context(run), error)
    messages.success(request, f"Run {queued.pk} is queued; it repeats run {run.pk}.")
    return redirect("run", slug, queued.pk)


# Evaluations


@login_required
@require_GET
def evaluation_index(request: HttpRequest, slug: str) -> HttpResponse:
    """List evaluations."""
    membership = get_membership(request, slug, Role.LEAD)
    rows = Evaluation.objects.filter(project=membership.project)
    version = request.GET.get("version", "")
    if (number := whole(version)) is not None:
        rows = rows.filter(challenger__number=number)
    rows = rows.select_related("challenger", "champion", "reward_version", "created_by")
    context = {
        "page": page_of(request, rows),
        "version": version,
        "versions": Version.objects.filter(project=membership.project).order_by("-number"),
    }
    return render(request, "training/evaluations.html", context)


@login_required
def evaluation_new(request: HttpRequest, slug: str) -> HttpResponse:
    """Compare two versions on held-out prompts."""
    membership = get_membership(request, slug, Role.LEAD)
    data = request.POST if request.method == "POST" else None
    initial = {
        name: request.GET[name] for name in ("challenger", "snapshot") if name in request.GET
    }
    form = EvaluationForm(data, project=membership.project, initial=initial)
    versions = Version.objects.filter(project=membership.project)
    ready = Snapshot.objects.filter(project=membership.project, state=Snapshot.State.READY)
    context = {"form": form, "possible": versions.count() > 1 and ready.exists()}
    template = "training/evaluation_new.html"
    if data is None:
        return render(request, template, context)
    if not form.is_valid():
        return refused(request, template, context, LOOK_AGAIN)
    try:
        started = evaluation.start_evaluation(by=membership.user, **form.cleaned_data)
    except (ProductError, ValidationError) as error:
        return refused(request, template, context, error)
    messages.success(request, "The comparison is queued.")
    return redirect("evaluation", slug, started.pk)


def _evaluation_context(request: HttpRequest, slug: str, pk: int) -> dict[str, Any]:
    membership = get_membership(request, slug, Role.LEAD)
    rows = Evaluation.objects.filter(project=membership.project).select_related(
        "challenger", "champion", "snapshot", "created_by", "campaign", "reward_version"
    )
    found = get_object_or_404(rows, pk=pk)
    heldout = found.snapshot.manifest.get("prompts", {}).get("heldout", 0)
    result = evaluation.so_far(found)
    sides = (found.challenger.name, found.champion.name)
    return {
        "evaluation": found,
        "result": result,
        "win_rate": result.get("win_rate"),
        "standing": gate.standing(version=found.challenger, champion=found.champion),
        "waiting": found.state in (Evaluation.State.QUEUED, Evaluation.State.RUNNING),
        "to_compare": heldout * found.samples,
        "sides": sides,
        "heldout": measures.against(found),
        "heldout_names": (f"{sides[0]} before training", sides[0], INTERVAL, sides[1]),
        "other_heldout": found.champion.snapshot_digest
        not in ("", found.challenger.snapshot_digest),
        "labelled": measures.on_labels(result),
        "confusions": measures.confusions(found, result),
    }


@login_required
@require_GET
def evaluation_page(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show a comparison: the win rate with its interval first."""
    return render(request, "training/evaluation.html", _evaluation_context(request, slug, pk))


@login_required
@require_GET
def evaluation_body(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Render a comparison's state and result alone."""
    context = _evaluation_context(request, slug, pk)
    response = render(request, "training/_evaluation_body.html", context)
    if not context["waiting"]:
        response["HX-Refresh"] = "true"
    return response
