"""Store imported rows by COPY: several times as fast as INSERT, under the same constraints."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from django.db import OperationalError, connection, models
from django.utils import timezone

from accounts.errors import Conflict
from accounts.models import Project, User
from feedback.models import Campaign, Item, Judgement, Response, Slot

if TYPE_CHECKING:
    from feedback.importing import Entry

# Told of (what is done, how many rows so far, of how many or None) every so many rows.
Watch = Callable[[str, int, int | None], None]
WATCHED_ROWS = 1000
PROMPTS_PER_BATCH = 2500
_NAMESPACE = uuid.UUID("4f1de1a5-6f0e-4f0e-9a3c-6b3f6c8f2a10")
_TURNS = 0x1A9081  # the advisory locks of imports, one for each project


def unwatched(doing: str, done: int, total: int | None) -> None:
    """Tell nobody."""


def take_turn(project: Project, *, seconds: int) -> None:
    """Wait until no other import into the project is under way; to be given up with the commit.

    Conflict where the turn does not come in time.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{seconds}s"])
        try:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [_TURNS, project.pk])
        except OperationalError as error:
            raise Conflict(
                "Another import into this project is still being stored. Send the file again in a "
                "minute."
            ) from error
        cursor.execute("SELECT set_config('lock_timeout', '0', true)")


def judgement_id(project: Project, said: str) -> uuid.UUID:
    """Return the id of the judgement that a row becomes, from the digest of what it says."""
    return uuid.uuid5(_NAMESPACE, f"{project.pk}:{said}")


def known_prompts(project: Project, digests: Sequence[str]) -> set[str]:
    """Return which of these prompts the project has."""
    return _there(
        "SELECT digest FROM feedback_prompt WHERE digest = ANY(%s) AND project_id = %s",
        [digests, project.pk],
    )


def known_judgements(ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Return which of these judgements there are."""
    return _there("SELECT client_id FROM feedback_judgement WHERE client_id = ANY(%s)", [ids])


def campaign_of(project: Project, entries: Iterable[Entry]) -> Campaign | None:
    """Return the campaign that holds these rows; None where they are spread over several."""
    ids = [judgement_id(project, entry.said) for entry in entries]
    holding = Campaign.objects.filter(project=project, judgements__client_id__in=ids)
    found = list(holding.distinct()[:2])
    return found[0] if len(found) == 1 else None


def _there(query: str, values: Sequence[Any]) -> set[Any]:
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return {row[0] for row in cursor.fetchall()}


def store_prompts(project: Project, entries: Iterable[Entry]) -> dict[str, int]:
    """Return the ids of the entries' prompts by digest, storing those that are new."""
    prompts = {entry.prompt_digest: entry for entry in entries}
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMPORARY TABLE incoming"
            " (digest varchar(64), messages jsonb, documents jsonb) ON COMMIT DROP"
        )
        with cursor.copy("COPY incoming FROM STDIN") as copy:
            for digest, entry in prompts.items():
                documents = json.dumps(entry.documents) if entry.documents else "[]"
                copy.write_row((digest, entry.prompt_json, documents))
        cursor.execute(
            "INSERT INTO feedback_prompt"
            " (project_id, messages, documents, digest, tags, created_at)"
            " SELECT %s, messages, documents, digest, '{import}', now() FROM incoming"
            " ON CONFLICT (project_id, digest) DO NOTHING",
            [project.pk],
        )
        cursor.execute(
            "SELECT incoming.digest, prompt.id FROM incoming JOIN feedback_prompt AS prompt"
            " ON prompt.digest = incoming.digest AND prompt.project_id = %s",
            [project.pk],
        )
        found = dict(cursor.fetchall())
        cursor.execute("DROP TABLE incoming")
    return found


def import_user(project: Project, number: int) -> User:
    """Return the project's import user; nobody can sign in as one."""
    name = f"import{number + 1 if number else ''}-{project.slug}"
    user, made = User.objects.get_or_create(username=name, defaults={"is_active": False})
    if made:
        user.set_unusable_password()
        user.save(update_fields=["password"])
    elif user.has_usable_password():
        raise Conflict(
            f"A person has the name “{name}”, which imports of this project need. "
            "Rename the person."
        )
    return user


def store_judged(
    *,
    project: Project,
    by: User | None,
    name: str,
    pairs: bool,
    judged: Sequence[tuple[uuid.UUID, Entry]],
    watch: Watch = unwatched,
) -> Campaign:
    """Store judged rows as a closed campaign: items, responses, filled slots, judgements."""
    prompt_ids = store_prompts(project, (entry for _, entry in judged))
    by_prompt: dict[int, list[tuple[uuid.UUID, Entry]]] = {}
    for client_id, entry in judged:
        by_prompt.setdefault(prompt_ids[entry.prompt_digest], []).append((client_id, entry))
    most = max(map(len, by_prompt.values()))
    users = [import_user(project, number).pk for number in range(most)]
    campaign = Campaign(
        project=project,
        name=name[:120],
        kind=Campaign.Kind.PAIRWISE if pairs else Campaign.Kind.THUMBS,
        state=Campaign.State.CLOSED,
        judgements_per_item=most,
        responses_per_item=2 if pairs else 1,
        to_generate=len(by_prompt),
        generated=len(by_prompt),
        created_by=by,
    )
    campaign.full_clean()
    campaign.save()
    prompts = iter(by_prompt.items())
    stored = 0
    while some := dict(islice(prompts, PROMPTS_PER_BATCH)):
        _store_items(campaign, some, users, pairs=pairs)
        stored += sum(map(len, some.values()))
        watch("stored", stored, len(judged))
    return campaign


def _store_items(
    campaign: Campaign,
    by_prompt: dict[int, list[tuple[uuid.UUID, Entry]]],
    users: Sequence[int],
    *,
    pairs: bool,
) -> None:
    now = timezone.now().isoformat()
    judgements = sum(map(len, by_prompt.values()))
    items = iter(_reserve(Item, len(by_prompt)))
    responses = iter(_reserve(Response, judgements * campaign.responses_per_item))
    slots, ids = iter(_reserve(Slot, judgements)), iter(_reserve(Judgement, judgements))
    # Arrays go as text: their adaptation would take longer than all the rest.
    rows: dict[type[models.Model], list[tuple[Any, ...]]] = {model: [] for model in _FIELDS}
    for prompt_id, judged in by_prompt.items():
        item = next(items)
        rows[Item].append((item, campaign.pk, prompt_id, now))
        position = 0
        for index, (client_id, entry) in enumerate(judged):
            slot, user = next(slots), users[index]
            # Best first in half of the items only: where an answer stands must say nothing.
            swap = pairs and client_id.int % 2 == 1
            first = next(responses)
            texts = entry.texts[::-1] if swap else entry.texts
            rows[Response].append((first, item, position, texts[0], "import"))
            order, shown, ranking = f"{{{position}}}", f"{{{first}}}", None
            if pairs:
                second = next(responses)
                rows[Response].append((second, item, position + 1, texts[1], "import"))
                order, shown = f"{{{position},{position + 1}}}", f"{{{first},{second}}}"
                ranking = f"[[{second}], [{first}]]" if swap else f"[[{first}], [{second}]]"
            position += len(texts)
            rows[Slot].append((slot, campaign.pk, item, index, 0, order, "filled", user, 1))
            rows[Judgement].append(
                (
                    next(ids), str(client_id), slot, item, campaign.pk, user,
                    ranking, entry.thumb, entry.strength, False, "", shown, now, "",
                )
            )  # fmt: skip
    for model, fields in _FIELDS.items():
        _copy(model, fields, rows[model])


_FIELDS: dict[type[models.Model], tuple[str, ...]] = {
    Item: ("id", "campaign", "prompt", "created_at"),
    Response: ("id", "item", "position", "text", "source"),
    Slot: ("id", "campaign", "item", "index", "shuffle", "order", "state", "holder", "token"),
    Judgement: (
        "id", "client_id", "slot", "item", "campaign", "annotator", "ranking", "thumb", "strength",
        "both_bad", "comment", "shown", "created_at", "retracted_why",
    ),
}  # fmt: skip


def _reserve(model: type[models.Model], count: int) -> list[int]:
    """Return ids that nobody else gets."""
    with connection.cursor() as cursor:
        cursor.execute(
            # Materialized, or the sequence would be looked up for every id.
            "WITH named AS MATERIALIZED"
            " (SELECT pg_get_serial_sequence(%s, 'id')::regclass AS sequence)"
            " SELECT nextval(sequence) FROM named, generate_series(1, %s)",
            [model._meta.db_table, count],
        )
        return [row[0] for row in cursor.fetchall()]


def _copy(
    model: type[models.Model], fields: Sequence[str], rows: Iterable[tuple[Any, ...]]
) -> None:
    columns = ", ".join(f'"{model._meta.get_field(name).column}"' for name in fields)  # type: ignore[union-attr]
    statement = f'COPY "{model._meta.db_table}" ({columns}) FROM STDIN'
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)
