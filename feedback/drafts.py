"""Drafts: a version proposes prompts and answers, a person decides each before anything counts.

A request fixes what is asked, so every draft follows from the request and its number. Each is
stored in a transaction of its own under that number: a worker that dies leaves whole drafts and
missing ones, and two workers with one request make no doubles. What the machine sets aside stays,
with its reason. The first decision stands; whoever comes second is told who was first.

An approved answer is no answer of its version any more, since a person chose it and may have edited
it: its response says "draft of v3" as its source, and leaderboards keep the two apart.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import QuerySet, TextField
from django.db.models.functions import Cast, Length, Now

from accounts.errors import Conflict, ProductError, TooLarge, Unavailable
from accounts.models import Project, User
from accounts.services import audit
from feedback import drafting
from feedback.drafting import Messages, Unfit
from feedback.live import Sent, add_items, campaign_has, hold
from feedback.models import MAX_CORRECTION, Campaign, Item, Prompt, Response, text_digest
from feedback.models_drafts import (
    MAX_GUIDANCE,
    MOST_DRAFTS,
    MOST_SHOTS,
    Draft,
    DraftQuerySet,
    DraftRequest,
)
from feedback.services import STALLED_AFTER, check_messages, check_source, write_together
from inference import client
from inference.client import Generated
from inference.models import Completion
from inference.services import load_on_engines

# An example longer than this, as JSON, leaves no room for others.
MAX_EXAMPLE = 4_000
# Examples are drawn from among the newest so many.
MOST_EXAMPLES = 1_000
# A new prompt is compared with the newest so many.
NEAR_AMONG = 5_000
MAX_REASON = 500
BAD_REQUEST = 400

Kind = DraftRequest.Kind


# Asking


@transaction.atomic
def request_drafts(
    *,
    project: Project,
    by: User,
    kind: DraftRequest.Kind,
    source: dict[str, Any],
    prompts: QuerySet[Prompt],
    wanted: int,
    shots: int = 3,
    guidance: str = "",
    tags: Sequence[str] = (),
    seed: int = 0,
    client_id: uuid.UUID | None = None,
) -> DraftRequest:
    """Order drafts and queue their writing; the same client id again gives the order there is.

    ``source`` is as a campaign's: version, temperature, top_p, max_tokens. For new prompts,
    ``prompts`` are examples; else each is answered once, those without a draft to review or an
    approved one. Errors: ProductError.
    """
    from feedback.tasks import write_drafts

    client_id = client_id or uuid.uuid4()
    same = DraftRequest.objects.filter(project=project, client_id=client_id)
    if (there := same.first()) is not None:
        return there
    if not 1 <= wanted <= MOST_DRAFTS:
        raise ProductError(f"Ask for 1 to {MOST_DRAFTS} drafts at a time.")
    if not 1 <= shots <= MOST_SHOTS:
        raise ProductError(f"Show 1 to {MOST_SHOTS} examples at a time.")
    if len(guidance) > MAX_GUIDANCE:
        raise TooLarge(f"The guidance has more than {MAX_GUIDANCE:,} characters. Shorten it.")
    clean = check_source(project, source)
    rows = prompts.filter(project=project, withdrawn_at=None).order_by("-id")
    chosen = _examples(rows) if kind == Kind.PROMPT else _to_answer(rows, wanted, seed)
    request = DraftRequest(
        project=project,
        client_id=client_id,
        kind=kind,
        version_id=clean.pop("version"),
        sampling=clean,
        seed=seed,
        guidance=guidance.strip(),
        prompts=chosen,
        shots=min(shots, len(chosen)),
        wanted=wanted if kind == Kind.PROMPT else len(chosen),
        tags=list(tags) if kind == Kind.PROMPT else [],
        by=by,
    )
    request.full_clean(validate_constraints=False)
    try:
        with transaction.atomic():
            request.save()
    except IntegrityError:
        return same.get()  # sent twice at once
    audit(
        project=project,
        by=by,
        action="draft.request",
        target=str(request),
        request=request.pk,
        version=request.version.name,
    )
    write_drafts.delay_on_commit(request.pk)
    return request


def _examples(rows: QuerySet[Prompt]) -> list[int]:
    """Return the ids of prompts that can be shown: short, and whole without documents."""
    sized = rows.filter(documents=[]).annotate(size=Length(Cast("messages", TextField())))
    found = list(sized.filter(size__lte=MAX_EXAMPLE).values_list("pk", flat=True)[:MOST_EXAMPLES])
    if not found:
        raise ProductError(
            "There is no prompt to show as an example. Add one of at most "
            f"{MAX_EXAMPLE:,} characters without documents."
        )
    return found


def _to_answer(rows: QuerySet[Prompt], wanted: int, seed: int) -> list[int]:
    """Return the ids of prompts to answer, drawn among those without a draft that may count."""
    drafted = Draft.objects.filter(state__in=[Draft.State.PENDING, Draft.State.APPROVED])
    answered = drafted.exclude(prompt=None).values("prompt")
    found = list(rows.exclude(pk__in=answered).values_list("pk", flat=True))
    if not found:
        raise ProductError(
            "Each of these prompts has a drafted answer already. Choose others, or review those."
        )
    return random.Random(seed).sample(found, min(wanted, len(found)))


# Writing


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked for one draft; it follows from the request and the number."""

    number: int
    prompt: Prompt | None
    examples: list[int]
    messages: Messages
    sampling: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What an engine gave: a text, or the sentence with which it refused."""

    generated: Generated | None
    refusal: str = ""


def write_drafts(*, request_id: int) -> None:
    """Write the missing drafts of a request; safe to run again after a crash, or twice at once."""
    request = DraftRequest.objects.select_related("version__base", "project").get(pk=request_id)
    this = DraftRequest.objects.filter(pk=request_id, state=DraftRequest.State.GENERATING)
    if not this.exists():
        return
    plans = _missing(request)
    known = Known(request)
    try:
        load_on_engines(request.version)
        written = write_together(partial(_write, request), plans)
        for plan, found in zip(plans, written, strict=True):
            _store(request, plan, found, known)
    except ProductError as error:
        this.update(state=DraftRequest.State.FAILED, reason=error.message[:MAX_REASON])
        return
    this.update(state=DraftRequest.State.READY, reason="")


def _missing(request: DraftRequest) -> list[Plan]:
    there = set(request.drafts.values_list("number", flat=True))
    prompts = Prompt.objects.filter(withdrawn_at=None).in_bulk(request.prompts)
    numbers = [number for number in range(request.wanted) if number not in there]
    if request.kind == Kind.PROMPT:
        return [_plan_prompt(request, number, prompts) for number in numbers]
    # What was withdrawn since the request is left out.
    return [
        _plan_response(request, number, prompts[request.prompts[number]])
        for number in numbers
        if request.prompts[number] in prompts
    ]


def _plan_prompt(request: DraftRequest, number: int, prompts: Mapping[int, Prompt]) -> Plan:
    there = [pk for pk in request.prompts if pk in prompts]
    seed = client.seed_of(request.seed, "draft", request.pk, number)
    examples = random.Random(seed).sample(there, min(request.shots, len(there)))
    shown = [prompts[pk].messages for pk in examples]
    return Plan(
        number=number,
        prompt=None,
        examples=examples,
        messages=drafting.ask_for_prompt(shown, request.guidance),
        sampling=request.sampling | {"seed": seed},
    )


def _plan_response(request: DraftRequest, number: int, prompt: Prompt) -> Plan:
    return Plan(
        number=number,
        prompt=prompt,
        examples=[],
        messages=drafting.ask_for_response(prompt.messages, request.guidance),
        sampling=request.sampling
        | {"seed": client.seed_of(request.seed, "draft", request.pk, prompt.digest)},
    )


def _write(request: DraftRequest, plan: Plan, http: httpx.Client) -> Written:
    """Have one draft written; no database. What an engine cannot take is a draft set aside."""
    urls = settings.ENGINE_URLS
    try:
        generated = client.chat(
            http,
            url=urls[plan.number % len(urls)],
            model=request.version.served_name,
            messages=plan.messages,
            sampling=plan.sampling,
        )
    except Unavailable:
        raise
    except ProductError as error:
        if error.extra.get("status") != BAD_REQUEST:
            raise
        return Written(generated=None, refusal=f"The model server refused: {error.message}")
    return Written(generated=generated)


@transaction.atomic
def _store(request: DraftRequest, plan: Plan, found: Written, known: Known) -> None:
    """Keep one draft with what was written for it, fit or not."""
    DraftRequest.objects.select_for_update().get(pk=request.pk)
    if Draft.objects.filter(request=request, number=plan.number).exists():
        return  # another worker was first
    draft = Draft(request=request, number=plan.number, prompt=plan.prompt, examples=plan.examples)
    if found.generated is None:
        draft.state, draft.reason = Draft.State.UNFIT, found.refusal[:MAX_REASON]
    else:
        draft.completion = found.generated.completion(
            version=request.version,
            source=Completion.Source.DRAFT,
            messages=plan.messages,
            sampling=plan.sampling,
        )
        draft.completion.created_by_id = request.by_id
        draft.completion.save()
        try:
            draft.proposed = _read(request, draft.completion.text)
            draft.digest = text_digest(draft.proposed)
            known.check(draft)
        except Unfit as unfit:
            draft.state, draft.reason = Draft.State.UNFIT, str(unfit)[:MAX_REASON]
    draft.save()
    known.add(draft)
    DraftRequest.objects.filter(pk=request.pk).update(touched_at=Now())


def _read(request: DraftRequest, text: str) -> Any:
    if request.kind == Kind.RESPONSE:
        return drafting.read_response(text)
    try:
        return check_messages(drafting.read_prompt(text))
    except ProductError as error:
        raise Unfit(error.message) from None


class Known:
    """The texts that a draft must not repeat: those of the project, and of earlier drafts."""

    def __init__(self, request: DraftRequest) -> None:
        self.request = request
        self.words: dict[str, list[str]] = {}
        self.least = drafting.NEAR_RESPONSE
        if request.kind == Kind.PROMPT:
            self.least = drafting.NEAR_PROMPT
            newest = Prompt.objects.filter(project=request.project_id, erased_at=None)
            shown = list(newest.order_by("-id").values_list("pk", "messages")[:NEAR_AMONG])
            shown += newest.filter(pk__in=request.prompts).values_list("pk", "messages")
            for pk, messages in shown:
                self.words[f"prompt {pk}"] = drafting.asked_words(messages)
            for draft in self._drafts().order_by("-id")[:NEAR_AMONG]:
                self.add(draft)

    def _drafts(self) -> DraftQuerySet:
        """Return the drafts that one could repeat: to review, approved, or rejected."""
        rows = Draft.objects.filter(request__project=self.request.project_id, digest__gt="")
        return rows.filter(request__kind=self.request.kind).exclude(state=Draft.State.UNFIT)

    def add(self, draft: Draft) -> None:
        """Keep a new prompt's words; answers are compared with those of their prompt only."""
        if self.request.kind == Kind.PROMPT and draft.state != Draft.State.UNFIT:
            self.words[f"draft {draft.pk}"] = drafting.asked_words(draft.turns)

    def check(self, draft: Draft) -> None:
        """Raise Unfit where a draft says what is there already, or nearly so."""
        words = self.words
        if draft.prompt is None:
            same = Prompt.objects.filter(project=self.request.project_id, digest=draft.digest)
            if (pk := same.values_list("pk", flat=True).first()) is not None:
                raise Unfit(f"The same as prompt {pk}.")
            found = drafting.asked_words(draft.turns)
        else:
            texts = Response.objects.filter(item__prompt=draft.prompt).values_list("pk", "text")
            words = {f"response {pk}": drafting.words(text) for pk, text in texts}
            if draft.proposed in [text for _, text in texts]:
                raise Unfit("The same as a response that the prompt has.")
            for other in self._drafts().filter(prompt=draft.prompt):
                words[f"draft {other.pk}"] = drafting.words(other.last_turn)
            found = drafting.words(draft.last_turn)
        earlier = self._drafts().filter(digest=draft.digest, prompt=draft.prompt).first()
        if earlier is not None:
            raise Unfit(f"The same as draft {earlier.pk}, which is {earlier.get_state_display()}.")
        near = drafting.nearest(found, words, least=self.least)
        if near is not None:
            raise Unfit(f"Nearly {near.name}: {near.share:.0%} of the words are common to both.")


def resume_stalled_drafts() -> int:
    """Queue every request again that stood still (a killed worker); return how many."""
    from feedback.tasks import write_drafts

    stalled = DraftRequest.objects.filter(
        state=DraftRequest.State.GENERATING, touched_at__lt=Now() - STALLED_AFTER
    )
    ids = list(stalled.values_list("pk", flat=True))
    for request_id in ids:
        if stalled.filter(pk=request_id).update(touched_at=Now()):
            write_drafts.delay(request_id)
    return len(ids)


@transaction.atomic
def restart(*, request: DraftRequest, by: User) -> None:
    """Have the missing drafts of a failed request written; Conflict unless it failed."""
    from feedback.tasks import write_drafts

    failed = DraftRequest.objects.filter(pk=request.pk, state=DraftRequest.State.FAILED)
    if not failed.update(state=DraftRequest.State.GENERATING, reason="", touched_at=Now()):
        raise Conflict("These drafts are being written, or are all there.")
    audit(
        project=request.project,
        by=by,
        action="draft.restart",
        target=str(request),
        request=request.pk,
    )
    write_drafts.delay_on_commit(request.pk)


# Deciding


@transaction.atomic
def approve(
    *, draft: Draft, by: User, instead: Any = None, campaign: Campaign | None = None
) -> Draft:
    """Make a draft count, as it is or with what a person wrote instead; into a campaign if named.

    ``instead`` is a conversation for a prompt and a text for an answer. Errors: ProductError,
    TooLarge; Conflict where somebody decided before, or such a prompt is there.
    """
    draft = _undecided(draft)
    proposed = draft.proposed
    draft.approved_as = proposed if instead is None else _check(draft, instead)
    draft.edited = draft.approved_as != proposed
    draft.placed_in = campaign
    draft.state = Draft.State.APPROVED
    if draft.request.kind == Kind.PROMPT:
        draft.made_prompt = _make_prompt(draft)
    elif draft.prompt and draft.prompt.withdrawn_at:
        raise Conflict("Its prompt was withdrawn. Reject the draft.")
    _decide(draft, by, campaign=campaign.name if campaign else "")
    if campaign is not None:
        _place_one(draft, campaign)
    return draft


@transaction.atomic
def reject(*, draft: Draft, by: User, why: str = "") -> Draft:
    """Set a draft aside for good; Conflict where somebody decided before."""
    draft = _undecided(draft)
    draft.state, draft.reason = Draft.State.REJECTED, why.strip()[:MAX_REASON]
    _decide(draft, by)
    return draft


def _undecided(draft: Draft) -> Draft:
    """Return the draft locked until commit; Conflict unless it waits for a person."""
    rows = Draft.objects.select_related("request__project", "request__version", "prompt")
    found = rows.select_for_update(of=("self",)).get(pk=draft.pk)
    if found.state == Draft.State.UNFIT:
        raise Conflict(f"The machine set this draft aside: {found.reason}")
    if found.state != Draft.State.PENDING:
        assert found.decided_by is not None
        raise Conflict(
            f"{found.decided_by.username} {found.state} this draft already; yours changed nothing.",
            state=found.state,
            decided_by=found.decided_by.username,
        )
    return found


def _check(draft: Draft, instead: Any) -> Any:
    if draft.request.kind == Kind.PROMPT:
        return check_messages(instead)
    if not isinstance(instead, str) or not instead.strip():
        raise ProductError("An answer is a text that says something. Write it, or reject.")
    if len(instead) > MAX_CORRECTION:
        raise TooLarge(f"An answer has at most {MAX_CORRECTION:,} characters. Shorten it.")
    if "\x00" in instead:
        raise ProductError("The answer has a NUL character. Remove it.")
    return instead


def _make_prompt(draft: Draft) -> Prompt:
    prompt, new = Prompt.objects.get_or_create(
        project=draft.request.project,
        digest=text_digest(draft.approved_as),
        defaults={"messages": draft.approved_as, "tags": draft.request.tags},
    )
    if not new:
        raise Conflict(f"Prompt {prompt.pk} asks the same. Edit the draft, or reject it.")
    return prompt


def _decide(draft: Draft, by: User, **details: Any) -> None:
    draft.decided_by, draft.decided_at = by, Now()
    draft.save()
    draft.refresh_from_db(fields=["decided_at"])
    audit(
        project=draft.request.project,
        by=by,
        action="draft.approve" if draft.state == Draft.State.APPROVED else "draft.reject",
        target=f"draft {draft.pk} of {draft.request.version.name}",
        draft=draft.pk,
        edited=draft.edited,
        reason=draft.reason,
        **details,
    )


# What was approved goes to be judged


def source_name(draft: Draft) -> str:
    """Return what an approved answer gives as its source, in exports and leaderboards."""
    return f"draft of {draft.request.version.name}" + (", edited" if draft.edited else "")


def _place_one(draft: Draft, campaign: Campaign) -> None:
    """Put what was just approved into a campaign, or refuse the approval with it."""
    if campaign.project_id != draft.request.project_id:
        raise ProductError("The campaign belongs to another project.")
    campaign = hold(campaign)
    if draft.made_prompt is not None:
        add_items(campaign=campaign, answers={draft.made_prompt.pk: []})
    elif not _place(campaign, [draft]).items:
        raise Conflict(
            f"“{campaign.name}” has this prompt and its responses. Choose another campaign or none."
        )


@transaction.atomic
def place(*, campaign: Campaign, drafts: Sequence[Draft], by: User) -> Sent:
    """Put approved answers into a campaign, which has the others written; all of them or none.

    A prompt that the campaign has is left as it is. Errors: ProductError, Conflict.
    """
    campaign = hold(campaign)
    ids = [draft.pk for draft in drafts]
    rows = Draft.objects.filter(pk__in=ids, request__project=campaign.project_id).unplaced()
    locked = list(rows.select_related("request__version").select_for_update(of=("self",)))
    if len(locked) != len(set(ids)) or not ids:
        raise Conflict("Choose approved answers that are in no campaign yet.")
    sent = _place(campaign, locked)
    audit(
        project=campaign.project,
        by=by,
        action="draft.place",
        target=campaign.name,
        drafts=ids,
        items=sent.items,
    )
    return sent


def _place(campaign: Campaign, drafts: Sequence[Draft]) -> Sent:
    by_prompt: dict[int, list[Draft]] = {}
    for draft in drafts:
        assert draft.prompt_id is not None
        by_prompt.setdefault(draft.prompt_id, []).append(draft)
    there = campaign_has(campaign, by_prompt)
    answers: dict[int, list[Response]] = {}
    for prompt_id in by_prompt.keys() - there:
        answers[prompt_id] = _responses(by_prompt[prompt_id][: campaign.responses_per_item])
    add_items(campaign=campaign, answers=answers)
    for prompt_id, responses in answers.items():
        _link(by_prompt[prompt_id], responses)
    return Sent(items=len(answers), already=len(there))


def seat(*, campaign: Campaign) -> None:
    """Give a campaign that was just made the approved answers to its prompts, before generation."""
    items = dict(Item.objects.filter(campaign=campaign).values_list("prompt", "pk"))
    rows = Draft.objects.filter(prompt__in=items, request__project=campaign.project_id).unplaced()
    by_prompt: dict[int, list[Draft]] = {}
    for draft in rows.select_related("request__version").select_for_update(of=("self",)):
        assert draft.prompt_id is not None
        by_prompt.setdefault(draft.prompt_id, []).append(draft)
    for prompt_id, drafts in by_prompt.items():
        responses = _responses(drafts[: campaign.responses_per_item])
        for position, response in enumerate(responses):
            response.item_id, response.position = items[prompt_id], position
        Response.objects.bulk_create(responses)
        _link(drafts, responses)


def _responses(drafts: Sequence[Draft]) -> list[Response]:
    return [Response(text=draft.last_turn, source=source_name(draft)) for draft in drafts]


def _link(drafts: Sequence[Draft], responses: Sequence[Response]) -> None:
    for draft, response in zip(drafts, responses, strict=False):
        draft.response = response
        draft.save(update_fields=["response"])


# Erasing


def erase_drafts(*, prompt: Prompt) -> None:
    """Remove the texts of what was drafted for a prompt or became it, and where it was shown."""
    about = Draft.objects.filter(prompt=prompt) | Draft.objects.filter(made_prompt=prompt)
    ids = list(about.values_list("pk", flat=True))
    drafts = Draft.objects.filter(pk__in=ids)
    Completion.objects.filter(draft__in=ids).update(messages=[], text="")
    drafts.filter(state=Draft.State.PENDING).update(
        state=Draft.State.UNFIT, reason="Its prompt was erased.", proposed=None, digest=""
    )
    drafts.update(proposed=None, approved_as=None, digest="")
    shown = Draft.objects.filter(examples__contains=[prompt.pk])
    Completion.objects.filter(draft__in=shown).update(messages=[])
