"""Read what was said, prompt after prompt, from cursors that keep memory flat."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from operator import attrgetter
from typing import Any

from django.db import connection
from django.db.models import Exists, OuterRef, QuerySet

from accounts.models import User
from feedback import adjudication, quality
from feedback.models import (
    Campaign,
    CompletionFeedback,
    ItemRole,
    Judgement,
    Pause,
    Skip,
    text_digest,
)
from training.ledger import Exclusion
from training.options import Options
from training.rows import Said, margin_of
from training.settled import Decided

Message = dict[str, str]
RECORDS_PER_FETCH = 500
# What is judged to measure annotators teaches no model.
ROLES = {
    ItemRole.GOLD: Exclusion.GOLD,
    ItemRole.REPEAT: Exclusion.REPEAT,
    ItemRole.CALIBRATION: Exclusion.CALIBRATION,
}

# The narrow rows are sorted first; prompts and texts are looked up in that order (OFFSET 0 keeps
# the planner from sorting the texts, too). The count is of the same moment as the rows.
_JUDGEMENTS = """
SELECT judged.digest, judged.client_id::text, judged.campaign_id, judged.annotator_id,
       judged.ranking::text,
       judged.strength, judged.both_bad, judged.thumb, judged.retracted, judged.role,
       nullif(judged.ratings, '{}')::text, judged.correction, judged.corrected_id,
       prompt.messages::text,
       judged.item_id, response.ids, response.texts,
       (SELECT count(*) FROM feedback_judgement WHERE campaign_id = ANY(%(campaigns)s)) AS total
  FROM (SELECT prompt.digest, judgement.client_id, judgement.campaign_id,
               judgement.annotator_id, judgement.ranking,
               judgement.strength, judgement.both_bad, judgement.thumb,
               judgement.retracted_at IS NOT NULL AS retracted, judgement.ratings,
               judgement.correction, judgement.corrected_id, item.role,
               judgement.item_id, prompt.id AS prompt_id
          FROM feedback_judgement AS judgement
          JOIN feedback_item AS item ON item.id = judgement.item_id
          JOIN feedback_prompt AS prompt ON prompt.id = item.prompt_id
         WHERE judgement.campaign_id = ANY(%(campaigns)s)
         ORDER BY prompt.digest COLLATE "C", judgement.client_id
        OFFSET 0) AS judged
 CROSS JOIN LATERAL (SELECT messages FROM feedback_prompt
                      WHERE feedback_prompt.id = judged.prompt_id OFFSET 0) AS prompt
 CROSS JOIN LATERAL (SELECT array_agg(id) AS ids, array_agg(text) AS texts
                       FROM feedback_response WHERE item_id = judged.item_id) AS response
"""

_PROMPTS = """
SELECT digest, messages::text FROM feedback_prompt
 WHERE id IN (SELECT prompt_id FROM feedback_item WHERE campaign_id = ANY(%(campaigns)s))
"""

# Completions carry no digest of their messages, so it is worked out on the way through a table that
# lasts as long as the build.
_FEEDBACK_MESSAGES = """
SELECT feedback.id, completion.messages::text, feedback.user_id
  FROM feedback_completionfeedback AS feedback
  JOIN inference_completion AS completion ON completion.id = feedback.completion_id
 WHERE completion.project_id = %(project)s
"""
_FEEDBACK = """
SELECT said.digest, feedback.completion_id || '/' || feedback.client_id, feedback.user_id,
       feedback.thumb, feedback.correction, completion.messages::text, completion.text
  FROM said_in_use AS said
  JOIN feedback_completionfeedback AS feedback ON feedback.id = said.feedback_id
  JOIN inference_completion AS completion ON completion.id = feedback.completion_id
 ORDER BY said.digest COLLATE "C",
          (feedback.completion_id || '/' || feedback.client_id) COLLATE "C"
"""


@dataclass(slots=True)
class Record:
    """One thing said, with what it is about."""

    digest: str
    messages: list[Message]
    said: Said
    # The texts of its answers by digest.
    texts: dict[str, str]
    # What a lead decided of its item.
    decided: Decided | None = None


@dataclass(slots=True)
class Group:
    """Everything said of one prompt, in the order of the ids."""

    prompt_id: str
    messages: list[Message]
    said: list[Said] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    # The digest of the messages where they are no longer those that were stored.
    written: str = ""
    decided: list[Decided] = field(default_factory=list)


class Scope:
    """What a snapshot takes in: campaigns, and feedback on answers in use if it is asked for.

    Read it inside a transaction: the cursors then need no copy of the whole result. ``total`` is
    how many there are by the database's own count, once everything has been read.
    """

    def __init__(self, *, project: int, campaigns: Sequence[int], options: Options) -> None:
        self.project = project
        self.campaigns = list(campaigns)
        self.options = options
        self.total = 0

    def skipped(self) -> int:
        """Return how often an item was skipped, and count it.

        A judgement that was taken back may leave a skip, so that the item does not come again.
        """
        judged = Judgement.objects.filter(item=OuterRef("item"), annotator=OuterRef("annotator"))
        skips = Skip.objects.filter(~Exists(judged), item__campaign__in=self.campaigns)
        count = skips.count()
        self.total += count
        return count

    def prompts(self) -> Iterator[tuple[str, str]]:
        """Yield each prompt's digest and what is asked in it."""
        with connection.chunked_cursor() as cursor:
            cursor.execute(_PROMPTS, {"campaigns": self.campaigns})
            while rows := cursor.fetchmany(RECORDS_PER_FETCH):
                yield from ((digest, asked(json.loads(messages))) for digest, messages in rows)
        if not self.options.feedback:
            return
        with connection.chunked_cursor() as cursor:
            cursor.execute(_FEEDBACK_MESSAGES, {"project": self.project})
            while rows := cursor.fetchmany(RECORDS_PER_FETCH):
                for _, stored, _ in rows:
                    messages = json.loads(stored)
                    yield text_digest(messages), asked(messages)

    def annotators(self) -> set[str]:
        """Return the ids of everybody whose word may give a row."""
        found = {str(one) for one in self._sound().values_list("annotator", flat=True).distinct()}
        if self.options.feedback:
            said = CompletionFeedback.objects.filter(completion__project=self.project)
            users = said.filter(user__isnull=False).values_list("user", flat=True).distinct()
            found |= {str(one) for one in users}
        return found

    def judged_by(self, annotators: Collection[str]) -> set[str]:
        """Return the digests of the prompts on which these people's word may give a row."""
        judged = self._sound().filter(annotator__in=[int(one) for one in annotators])
        found = set(judged.values_list("item__prompt__digest", flat=True).distinct())
        if self.options.feedback:
            with connection.chunked_cursor() as cursor:
                cursor.execute(_FEEDBACK_MESSAGES, {"project": self.project})
                while rows := cursor.fetchmany(RECORDS_PER_FETCH):
                    found |= {
                        text_digest(json.loads(messages))
                        for _, messages, user in rows
                        if str(user) in annotators
                    }
        return found

    def _sound(self) -> QuerySet[Judgement]:
        paused = Pause.objects.standing().filter(
            campaign=OuterRef("campaign"), annotator=OuterRef("annotator")
        )
        normal = Judgement.objects.standing().filter(item__role=ItemRole.NORMAL)
        return normal.filter(~Exists(paused), campaign__in=self.campaigns).order_by()

    def groups(self) -> Iterator[Group]:
        """Yield what was said, a prompt at a time, in the order of their digests."""
        records = self._judged()
        if self.options.feedback:
            records = merge(records, self._in_use(), key=lambda one: (one.digest, one.said.id))
        for digest, some in groupby(records, key=attrgetter("digest")):
            group: Group | None = None
            for record in some:
                if group is None:
                    group = Group(digest, record.messages)
                group.said.append(record.said)
                if record.decided is not None:
                    group.decided.append(record.decided)
                if record.texts is not group.texts:
                    group.texts = group.texts | record.texts if group.texts else record.texts
            assert group is not None
            yield group

    def _judged(self) -> Iterator[Record]:
        last_digest, last_ids = "", None
        prompt: list[Message] = []
        texts: dict[str, str] = {}
        digests: dict[int, str] = {}
        total = 0
        paused = set(
            Pause.objects.standing()
            .filter(campaign__in=self.campaigns)
            .values_list("campaign_id", "annotator_id")
        )
        # Leads decide by hand, so all that they ever decided is little.
        answers = adjudication.decided_responses(self.campaigns)
        decided: Decided | None = None
        with connection.chunked_cursor() as cursor:
            cursor.execute(_JUDGEMENTS, {"campaigns": self.campaigns})
            while rows := cursor.fetchmany(RECORDS_PER_FETCH):
                total = rows[0][-1]
                for (
                    digest, client_id, campaign, annotator, ranked, strength, bad, thumb, retracted,
                    role, rated, correction, corrected, messages, item, ids, found, _,
                ) in rows:  # fmt: skip
                    if digest != last_digest:
                        prompt = json.loads(messages)
                        # An erased prompt has no messages left; all said of it is taken back.
                        if prompt and text_digest(prompt) != digest:
                            raise AssertionError(f"Prompt {digest} does not match its digest.")
                        last_digest = digest
                    if ids != last_ids:
                        last_ids = ids
                        digests = {
                            one: text_digest(text) for one, text in zip(ids, found, strict=True)
                        }
                        texts = dict(zip(digests.values(), found, strict=True))
                        decided = _decided(answers[item], digests) if item in answers else None
                    ranking = None
                    if ranked is not None:
                        ranking = [[digests[one] for one in group] for group in json.loads(ranked)]
                    exclusion = Exclusion.RETRACTED if retracted else ROLES.get(role)
                    if exclusion is None and (campaign, annotator) in paused:
                        exclusion = Exclusion.PAUSED_ANNOTATOR
                    if thumb is not None and len(ids) != 1:
                        exclusion = exclusion or Exclusion.THUMB  # of which answer, nobody knows
                    said = Said(
                        client_id,
                        str(annotator),
                        exclusion,
                        ranking,
                        bad,
                        margin_of(strength),
                        thumb,
                        digests[ids[0]] if len(ids) == 1 else "",
                    )
                    if rated is not None:
                        said.ratings = _by_answer(json.loads(rated), digests)
                    if corrected is None:
                        yield Record(digest, prompt, said, texts, decided)
                    else:
                        said.answer, said.correction = digests[corrected], text_digest(correction)
                        more = texts | {said.correction: correction}
                        yield Record(digest, prompt, said, more, decided)
        self.total += total

    def _in_use(self) -> Iterator[Record]:
        with connection.cursor() as cursor:
            cursor.execute(
                "CREATE TEMPORARY TABLE said_in_use (feedback_id bigint, digest varchar(64))"
                " ON COMMIT DROP"
            )
        with connection.chunked_cursor() as reading, connection.cursor() as writing:
            reading.execute(_FEEDBACK_MESSAGES, {"project": self.project})
            while rows := reading.fetchmany(RECORDS_PER_FETCH):
                self.total += len(rows)
                writing.executemany(
                    "INSERT INTO said_in_use VALUES (%s, %s)",
                    [(pk, text_digest(json.loads(messages))) for pk, messages, _ in rows],
                )
        with connection.chunked_cursor() as cursor:
            cursor.execute(_FEEDBACK)
            while rows := cursor.fetchmany(RECORDS_PER_FETCH):
                for digest, name, user, thumb, correction, messages, text in rows:
                    answer = text_digest(text)
                    texts = {answer: text}
                    better = ""
                    if correction.strip():
                        better = text_digest(correction)
                        texts[better] = correction
                    said = Said(
                        name, str(user or ""), thumb=thumb, answer=answer, correction=better
                    )
                    yield Record(digest, json.loads(messages), said, texts)
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE said_in_use")


def asked(messages: Sequence[Message]) -> str:
    """Return what the user says in a conversation."""
    return "\n".join(one["content"] for one in messages if one["role"] == "user")


def _by_answer(
    rated: Mapping[str, Mapping[str, float]], digests: Mapping[int, str]
) -> dict[str, Mapping[str, float]]:
    """Return scores by answer; the same words rated twice by one person count as their mean."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for one, scores in rated.items():
        found.setdefault(digests[int(one)], []).append(scores)
    return {
        answer: several[0] if len(several) == 1 else _mean(several)
        for answer, several in found.items()
    }


def _mean(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    levels: dict[str, list[float]] = {}
    for scores in several:
        for name, level in scores.items():
            levels.setdefault(name, []).append(level)
    return {name: math.fsum(of) / len(of) for name, of in levels.items()}


def _decided(answer: Mapping[str, Any], digests: Mapping[int, str]) -> Decided:
    if "thumb" in answer:
        return Decided(thumb=answer["thumb"], answer=next(iter(digests.values())))
    if "ratings" in answer:
        return Decided(ratings=_by_answer(answer["ratings"], digests))
    return Decided(ranking=[[digests[one] for one in group] for group in answer["ranking"]])


def competences(campaigns: Sequence[int]) -> dict[str, float]:
    """Return each annotator's chance to be right, by id, as the campaigns' quality reports say.

    Who overlapped with nobody is not in it. Two decimals: what is beyond differs between machines.
    """
    chances: dict[str, list[float]] = {}
    for campaign in Campaign.objects.filter(pk__in=campaigns).order_by("pk"):
        for row in quality.report(campaign).rows:
            if row.competence is not None:
                chances.setdefault(row.username, []).append(row.competence)
    ids = dict(User.objects.filter(username__in=chances).values_list("username", "pk"))
    return {
        str(ids[name]): round(sum(found) / len(found), 2)
        for name, found in sorted(chances.items())
        if name in ids
    }
