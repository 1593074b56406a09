"""What changes prompts, campaigns and feedback on completions."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import httpx
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F
from django.db.models.functions import Now

from accounts.errors import Conflict, ProductError, TooLarge, Unavailable
from accounts.models import Event, Project, User, Webhook
from accounts.services import audit
from accounts.webhooks import emit
from feedback.assignment import make_slots
from feedback.dealing import check_order
from feedback.documents import MAX_COPIED, attach, check_documents
from feedback.extras import define
from feedback.models import (
    MAX_COMMENT,
    MAX_CORRECTION,
    Campaign,
    CompletionFeedback,
    Item,
    ItemRole,
    Prompt,
    Response,
    Slot,
    text_digest,
)
from inference import client
from inference.models import Completion, Version
from inference.services import load_on_engines

T = TypeVar("T")
R = TypeVar("R")

ROLES = ("system", "user", "assistant")
# A source that keeps giving the same text is asked this often for a different one.
DISTINCT_ATTEMPTS = 4
# As many as an engine writes together.
GENERATION_THREADS = 16
STALLED_AFTER = timedelta(seconds=90)


def check_messages(messages: Any) -> list[dict[str, str]]:
    """Return a conversation that ends with the user's turn, or raise ProductError."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages:
        raise ProductError("A prompt is a text or a list of {role, content} messages.")
    clean: list[dict[str, str]] = []
    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in ROLES or not isinstance(content, str) or not content.strip():
            raise ProductError(
                f"Message {number} needs a “role” of {', '.join(ROLES)} and a “content” with text."
            )
        if "\x00" in content:
            raise ProductError(f"Message {number} has a NUL character. Remove it.")
        clean.append({"role": role, "content": content})
    if clean[-1]["role"] != "user":
        raise ProductError("The last message of a prompt must be the user's.")
    return clean


def add_prompts(
    *,
    project: Project,
    prompts: Sequence[Any],
    tags: Sequence[str] = (),
    documents: Sequence[Any] = (),
) -> list[Prompt]:
    """Return the prompts, stored once each, in the order given; all of them or none.

    Every one of them is given the documents. Errors: ProductError, TooLarge.
    """
    given = check_documents(documents)
    if sum(len(document["text"]) for document in given) * len(prompts) > MAX_COPIED:
        raise TooLarge(
            f"Each of {len(prompts):,} prompts would keep these documents, more than "
            f"{MAX_COPIED:,} characters in all. Attach them to fewer prompts."
        )
    conversations = []
    for number, prompt in enumerate(prompts, start=1):
        try:
            conversations.append(attach(check_messages(prompt), given))
        except ProductError as error:
            raise ProductError(f"Prompt {number}: {error.message}") from error
    digests = [text_digest(messages) for messages in conversations]
    Prompt.objects.bulk_create(
        [
            Prompt(
                project=project, messages=messages, documents=given, digest=digest, tags=list(tags)
            )
            for messages, digest in zip(conversations, digests, strict=True)
        ],
        ignore_conflicts=True,
    )
    stored = {
        prompt.digest: prompt
        for prompt in Prompt.objects.filter(project=project, digest__in=digests)
    }
    return [stored[digest] for digest in dict.fromkeys(digests)]


@transaction.atomic
def create_campaign(
    *,
    project: Project,
    by: User | None,
    name: str,
    kind: Campaign.Kind,
    prompts: Sequence[Prompt],
    sources: Sequence[dict[str, Any]],
    judgements_per_item: int = 3,
    responses_per_item: int = 4,
    instructions: str = "",
    seed: int = 0,
    extras: Mapping[str, Any] | None = None,
    queue_order: str = Campaign.Order.LEAST_JUDGED,
    approved_drafts: bool = False,
) -> Campaign:
    """Create a campaign and queue the generation of its responses.

    With ``approved_drafts``, answers that were drafted and approved stand among them.
    """
    from feedback.drafts import seat
    from feedback.tasks import generate_responses

    if not prompts:
        raise ProductError("A campaign needs at least one prompt.")
    if any(prompt.project_id != project.pk for prompt in prompts):
        raise ProductError("A prompt belongs to another project.")
    if any(prompt.withdrawn_at for prompt in prompts):
        raise ProductError("A prompt was withdrawn. Leave it out, and start again.")
    if kind == Campaign.Kind.THUMBS:
        responses_per_item = 1
    elif kind == Campaign.Kind.PAIRWISE:
        responses_per_item = 2
    asked = define(extras or {})
    if kind == Campaign.Kind.RATING and not asked.ratings:
        raise ProductError("Name at least one scale on which the responses are rated.")
    campaign = Campaign(
        project=project,
        name=name,
        kind=kind,
        extras=asked.as_dict(),
        instructions=instructions,
        judgements_per_item=judgements_per_item,
        responses_per_item=responses_per_item,
        sources=[check_source(project, source) for source in sources],
        seed=seed,
        queue_order=check_order(kind=kind, order=queue_order),
        to_generate=len(prompts),
        created_by=by,
    )
    if not campaign.sources:
        raise ProductError("Choose at least one version to write the responses.")
    compared = {source["version"] for source in campaign.sources}
    if campaign.queue_order == Campaign.Order.INFORMATIVE and len(compared) < 2:
        raise ProductError(
            "The most informative order compares versions. Choose at least two, or another order."
        )
    campaign.full_clean()
    campaign.save()
    items = [Item(campaign=campaign, prompt=prompt) for prompt in prompts]
    Item.objects.bulk_create(items)
    if approved_drafts:
        seat(campaign=campaign)
    audit(project=project, by=by, action="campaign.create", target=name, prompts=len(prompts))
    generate_responses.delay_on_commit(campaign.pk)
    return campaign


def check_source(project: Project, source: dict[str, Any]) -> dict[str, Any]:
    """Return a source of responses with its defaults filled in, or raise ProductError."""
    version = Version.objects.filter(project=project, pk=source.get("version") or 0).first()
    if version is None:
        raise ProductError("A source names a version that this project does not have.")
    try:
        clean = {
            "version": version.pk,
            "temperature": float(source.get("temperature", 1.0)),
            "top_p": float(source.get("top_p", 1.0)),
            "max_tokens": int(source.get("max_tokens", 128)),
        }
    except (TypeError, ValueError):
        raise ProductError("temperature, top_p and max_tokens of a source are numbers.") from None
    if not 0 <= clean["temperature"] <= 2:
        raise ProductError("temperature lies between 0 and 2.")
    if not 0 < clean["top_p"] <= 1:
        raise ProductError("top_p lies above 0 and at most at 1.")
    if not 1 <= clean["max_tokens"] <= 4096:
        raise ProductError("max_tokens lies between 1 and 4,096.")
    return clean


def generate_responses(*, campaign_id: int) -> None:
    """Write the missing responses of a campaign and open it; safe to run again after a crash.

    An item is finished in one transaction with its responses and slots, so a killed worker leaves
    only whole items and untouched ones.
    """
    campaign = Campaign.objects.select_related("project").get(pk=campaign_id)
    if campaign.state != Campaign.State.GENERATING:
        return
    versions = Version.objects.select_related("base").in_bulk(
        [source["version"] for source in campaign.sources]
    )
    try:
        for version in versions.values():
            load_on_engines(version)
        waiting = list(
            campaign.items.filter(role=ItemRole.NORMAL, slots=None)
            .select_related("prompt")
            .prefetch_related("responses")
        )
        written = write_together(partial(_write_item, campaign, versions), waiting)
        for item, completions in zip(waiting, written, strict=True):
            _store_item(campaign, item, completions)
    except (ProductError, Unavailable) as error:
        Campaign.objects.filter(pk=campaign_id, state=Campaign.State.GENERATING).update(
            state=Campaign.State.FAILED, reason=error.message[:500]
        )
        return
    _open_if_complete(campaign_id)


@transaction.atomic
def _open_if_complete(campaign_id: int) -> None:
    """Open a campaign whose responses are written; what was sent into it meanwhile comes first."""
    held = Campaign.objects.select_for_update().get(pk=campaign_id)
    if not held.items.filter(role=ItemRole.NORMAL, slots=None).exists():
        Campaign.objects.filter(pk=campaign_id, state=Campaign.State.GENERATING).update(
            state=Campaign.State.OPEN
        )


def write_together(write: Callable[[T, httpx.Client], R], these: Sequence[T]) -> Iterator[R]:
    """Yield what ``write`` makes of each, in order, as many at a time as an engine takes.

    What has not begun is left when one fails or the caller stops.
    """
    timeout = httpx.Timeout(settings.ENGINE_TIMEOUT_SECONDS, connect=5)
    with (
        httpx.Client(timeout=timeout) as http,
        ThreadPoolExecutor(GENERATION_THREADS) as threads,
    ):
        jobs = [threads.submit(write, one, http) for one in these]
        try:
            for job in jobs:
                yield job.result()
        finally:
            threads.shutdown(cancel_futures=True)


def _write_item(
    campaign: Campaign, versions: dict[int, Version], item: Item, http: httpx.Client
) -> list[Completion]:
    """Return unsaved completions for one item, texts differing where sources can; no database.

    Only what is missing: an item from live use has an answer already.
    """
    completions: list[Completion] = []
    texts = [response.text for response in item.responses.all()]
    for position in range(len(texts), campaign.responses_per_item):
        source = campaign.sources[position % len(campaign.sources)]
        completions.append(_write_response(campaign, item, position, source, versions, http, texts))
        texts.append(completions[-1].text)
    return completions


def _write_response(
    campaign: Campaign,
    item: Item,
    position: int,
    source: dict[str, Any],
    versions: dict[int, Version],
    http: httpx.Client,
    others: Sequence[str],
) -> Completion:
    version = versions[source["version"]]
    urls = settings.ENGINE_URLS
    for attempt in range(DISTINCT_ATTEMPTS):
        sampling = {
            "temperature": source["temperature"],
            "top_p": source["top_p"],
            "max_tokens": source["max_tokens"],
            "seed": client.seed_of(campaign.seed, item.prompt.digest, position, attempt),
        }
        generated = client.chat(
            http,
            url=urls[(item.pk + position) % len(urls)],
            model=version.served_name,
            messages=item.prompt.messages,
            sampling=sampling,
        )
        completion = generated.completion(
            version=version,
            source=Completion.Source.CANDIDATE,
            messages=item.prompt.messages,
            sampling=sampling,
        )
        if completion.text.strip() and completion.text not in others:
            break
    return completion


@transaction.atomic
def _store_item(campaign: Campaign, item: Item, completions: list[Completion]) -> None:
    if not Item.objects.select_for_update().filter(pk=item.pk).exists():
        return  # the draft that it came of was taken back meanwhile
    if Slot.objects.filter(item=item).exists():
        return  # another worker finished it first
    there = Response.objects.filter(item=item).count()
    Completion.objects.bulk_create(completions)
    Response.objects.bulk_create(
        Response(item=item, position=position, text=completion.text, completion=completion)
        for position, completion in enumerate(completions, start=there)
    )
    places = make_slots(item, campaign=campaign, responses=there + len(completions))
    Slot.objects.bulk_create(places)
    Campaign.objects.filter(pk=campaign.pk).update(generated=F("generated") + 1, touched_at=Now())


def resume_stalled_generations() -> int:
    """Queue every generation again that stood still (a killed worker); return how many."""
    from feedback.tasks import generate_responses

    stalled = Campaign.objects.filter(
        state=Campaign.State.GENERATING, touched_at__lt=Now() - STALLED_AFTER
    )
    ids = list(stalled.values_list("pk", flat=True))
    for campaign_id in ids:
        claimed = stalled.filter(pk=campaign_id).update(touched_at=Now())
        if claimed:
            generate_responses.delay(campaign_id)
    return len(ids)


def restart_generation(*, campaign: Campaign, by: User) -> None:
    """Queue a failed or interrupted generation again; finished items are kept."""
    from feedback.tasks import generate_responses

    Campaign.objects.filter(pk=campaign.pk, state=Campaign.State.FAILED).update(
        state=Campaign.State.GENERATING, reason=""
    )
    generate_responses.delay_on_commit(campaign.pk)
    audit(project=campaign.project, by=by, action="campaign.generate", target=campaign.name)


def set_campaign_state(*, campaign: Campaign, state: Campaign.State, by: User) -> None:
    """Open, pause or close a campaign whose responses are there."""
    allowed = {Campaign.State.OPEN, Campaign.State.PAUSED, Campaign.State.CLOSED}
    if state not in allowed:
        raise ProductError("A campaign can be opened, paused or closed.")
    changed = Campaign.objects.filter(pk=campaign.pk, state__in=allowed).update(state=state)
    if not changed:
        raise Conflict("The responses of this campaign are not ready yet.")
    audit(project=campaign.project, by=by, action=f"campaign.{state}", target=campaign.name)


@transaction.atomic
def tell_completed_campaigns() -> int:
    """Queue ``campaign.completed`` for each campaign whose slots are all filled; return how many.

    A campaign is told of again only after a judgement that came later, as after an undo.
    """
    told = 0
    asking = Webhook.objects.filter(active=True, events__contains=[Event.CAMPAIGN_COMPLETED])
    for project in Project.objects.filter(webhooks__in=asking).distinct():
        for campaign in Campaign.objects.filter(project=project).complete_and_untold():
            emit(
                project=project,
                event=Event.CAMPAIGN_COMPLETED,
                data={"campaign": campaign.pk, "name": campaign.name},
            )
            told += 1
    return told


def give_feedback(
    *,
    completion: Completion,
    user: User | None,
    thumb: int | None = None,
    comment: str = "",
    correction: str = "",
    complaint: bool = False,
    client_id: uuid.UUID | None = None,
) -> CompletionFeedback:
    """Keep what somebody says of an answer; the same client id again changes nothing.

    Errors: ProductError, TooLarge; Conflict for a draft, of which nothing counts.
    """
    if completion.source == Completion.Source.DRAFT:
        raise Conflict("A draft is approved or rejected on the drafts page; it takes no feedback.")
    if thumb not in (None, -1, 1):
        raise ProductError("“thumb” is 1 (up) or -1 (down).")
    if thumb is None and not comment and not correction and not complaint:
        raise ProductError("Send a thumb, a comment, a correction or a complaint.")
    for name, text, most in (
        ("comment", comment, MAX_COMMENT),
        ("correction", correction, MAX_CORRECTION),
    ):
        if len(text) > most:
            raise TooLarge(
                f"The {name} has {len(text):,} characters; {most:,} is the most. Shorten it."
            )
    client_id = client_id or uuid.uuid4()
    try:
        with transaction.atomic():
            return CompletionFeedback.objects.create(
                completion=completion,
                client_id=client_id,
                user=user,
                thumb=thumb,
                comment=comment,
                correction=correction,
                complaint=complaint,
            )
    except IntegrityError:
        earlier = CompletionFeedback.objects.get(completion=completion, client_id=client_id)
    if earlier.user_id != (user.pk if user is not None else None):
        raise Conflict("This client id was used for other feedback. Send a fresh UUID.")
    return earlier
