"""Two people, or a person and a worker, do what only one of them may, on real Postgres.

Each test brings the two to the very place where they could miss each other: one holds a row, the
other is seen waiting for it, and only then does the first go on.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection, connections, transaction

from accounts.models import Project, User
from accounts.processes import wait_until
from feedback import assignment, calibration
from feedback.models import Campaign, Item, Judgement, Slot
from feedback.services import add_prompts, generate_responses
from inference import services
from inference.models import Alias, AliasMove, BaseModel, Version
from tests.feedback.scripted import scripted
from tests.training.test_lineage import trained
from tests.training.test_snapshots import judge_all, strict, take_snapshot
from training import retraction, rounds, schedules
from training.models import Retraction, Round, Run, Schedule, ScheduledRound

pytestmark = pytest.mark.django_db(transaction=True)
RULE = "training.rules:concise"


@pytest.fixture
def start() -> Iterator[Callable[..., Future[Any]]]:
    """Return a function that does something in a thread with a connection of its own."""
    with ThreadPoolExecutor(4) as threads:

        def run(do: Callable[..., Any], **given: Any) -> Any:
            try:
                return do(**given)
            finally:
                connections.close_all()

        yield lambda do, **given: threads.submit(run, do, **given)


@contextmanager
def held_until_waited_for(*futures_of: Callable[[], Future[Any]]) -> Iterator[list[Future[Any]]]:
    """Keep this transaction open until all of what is started in it waits for one of its rows."""
    futures: list[Future[Any]] = []
    with transaction.atomic():
        yield futures
        futures += [begin() for begin in futures_of]
        wait_until(lambda: waiting() == len(futures) or all(one.done() for one in futures), 20)


def waiting() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted")
        return int(cursor.fetchone()[0])


def outcomes(futures: list[Future[Any]]) -> list[str]:
    """Return what became of each: “done”, or the name of the error."""
    errors = [future.exception(timeout=30) for future in futures]
    return sorted("done" if error is None else type(error).__name__ for error in errors)


@pytest.fixture
def judged(
    make_campaign: Callable[..., Campaign], annotator: User, second_annotator: User
) -> Campaign:
    campaign = make_campaign(items=6, judgements_per_item=2)
    judge_all(campaign, annotator, strict)
    judge_all(campaign, second_annotator, strict)
    return campaign


def test_of_two_promotions_at_once_one_is_refused(
    project: Project,
    base: BaseModel,
    base_version: Version,
    owner: User,
    settings: Any,
    start: Callable[..., Future[Any]],
) -> None:
    one, other = (
        Version.objects.create(
            project=project,
            number=number,
            base=base,
            parent=base_version,
            method="dpo",
            digest=f"{number:064d}",
            path=f"adapters/{number}",
        )
        for number in (1, 2)
    )

    def promote(version: Version) -> Callable[[], Future[Any]]:
        given = {"project": project, "version": version, "by": owner, "why": "it looks better"}
        return lambda: start(services.promote, **given)

    with scripted(lambda body: "ok") as engine:
        settings.ENGINE_URLS = [engine.url]
        with held_until_waited_for(promote(one), promote(other)) as promotions:
            Alias.objects.select_for_update().get(project=project, name="production")
        assert outcomes(promotions) == ["Conflict", "done"]
    moves = AliasMove.objects.filter(kind=AliasMove.Kind.PROMOTE)
    assert [move.from_version for move in moves] == [base_version]


def test_a_rung_that_begins_while_its_round_is_cancelled_ends_with_it(
    judged: Campaign, base_version: Version, owner: User, start: Callable[..., Future[Any]]
) -> None:
    snapshot = take_snapshot(judged.project, judged)
    made = Round.objects.create(
        project=judged.project, snapshot=snapshot, start_version=base_version, first_steps=2
    )
    with held_until_waited_for(lambda: start(rounds.cancel_round, round=made, by=owner)) as ended:
        Round.objects.select_for_update().get(pk=made.pk)
        run = Run.objects.create(
            project=judged.project,
            snapshot=snapshot,
            start_version=base_version,
            method="dpo",
            round=made,
            rung=1,
        )
    assert outcomes(ended) == ["done"]
    run.refresh_from_db()
    assert run.state == Run.State.CANCELLED


def test_two_rounds_that_are_due_at_once_are_one(
    judged: Campaign, start: Callable[..., Future[Any]]
) -> None:
    schedule = schedules.save_schedule(
        schedule=Schedule(project=judged.project, name="Weekly", rule=RULE),
        campaigns=[judged],
        by=None,
    )
    begin = [
        lambda due=due: start(schedules.begin_round, schedule=schedule, due=due)
        for due in ("monday", "by hand")
    ]
    with held_until_waited_for(*begin) as begun:
        Schedule.objects.select_for_update().get(pk=schedule.pk)
    assert outcomes(begun) == ["done", "done"]
    states = ScheduledRound.objects.order_by("state").values_list("state", flat=True)
    assert list(states) == ["exporting", "skipped"]


def test_a_judgement_that_comes_while_its_prompt_goes_goes_with_it(
    campaign: Campaign, annotator: User, owner: User, start: Callable[..., Future[Any]]
) -> None:
    task = assignment.claim(campaign=campaign, annotator=annotator)
    assert task is not None
    prompt = Item.objects.get(pk=task.slot.item_id).prompt
    given = {"project": campaign.project, "subject": prompt, "why": "private", "by": owner}
    with held_until_waited_for(lambda: start(retraction.retract, **given)) as withdrawn:
        assignment.submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=task.client_id,
            annotator=annotator,
            answer=assignment.Answer(ranking=[[one.pk] for one in task.responses]),
        )
    assert outcomes(withdrawn) == ["done"]
    assert Retraction.objects.get().judgements == 1
    assert Judgement.objects.get().retracted_why == "private"
    slots = Slot.objects.filter(item__prompt=prompt)
    assert [slot.state for slot in slots] == [Slot.State.FILLED], "nobody is asked again"


def test_a_run_that_ends_meanwhile_does_not_refuse_a_retraction(
    judged: Campaign, base_version: Version, owner: User, start: Callable[..., Future[Any]]
) -> None:
    run, _ = trained(take_snapshot(judged.project, judged), base_version, 1)
    Run.objects.filter(pk=run.pk).update(state=Run.State.RUNNING, lease=uuid.uuid4())
    subject = Judgement.objects.filter(campaign=judged).latest("id")
    given = {"project": judged.project, "subject": subject, "why": "wrong", "by": owner}
    with held_until_waited_for(lambda: start(retraction.retract, **given)) as retracted:
        Run.objects.filter(pk=run.pk).update(state=Run.State.SUCCEEDED, lease=None)
    assert outcomes(retracted) == ["done"]
    subject.refresh_from_db()
    assert subject.retracted_why == "wrong"


def test_what_was_undone_meanwhile_stays_undone_by_its_annotator(
    judged: Campaign, annotator: User, owner: User, start: Callable[..., Future[Any]]
) -> None:
    last = Judgement.objects.filter(annotator=annotator).latest("id")
    given = {"project": judged.project, "subject": annotator, "why": "spam", "by": owner}
    with held_until_waited_for(lambda: start(retraction.retract, **given)) as retracted:
        assignment.undo(campaign=judged, annotator=annotator)
    assert outcomes(retracted) == ["done"]
    last.refresh_from_db()
    assert last.retracted_why == "undone by its annotator"
    assert not Judgement.objects.standing().filter(annotator=annotator).exists()


def test_two_sessions_never_share_an_item(
    judged: Campaign,
    annotator: User,
    second_annotator: User,
    owner: User,
    start: Callable[..., Future[Any]],
) -> None:
    given = {
        "campaign": judged,
        "name": "Monday",
        "items": list(judged.items.all()[:2]),
        "members": [annotator, second_annotator],
        "by": owner,
    }
    begin = [lambda: start(calibration.start, **given)] * 2
    with held_until_waited_for(*begin) as sessions:
        Campaign.objects.select_for_update().get(pk=judged.pk)
    assert outcomes(sessions) == ["Conflict", "done"]


def test_an_item_that_is_sent_while_responses_are_written_gets_its_own(
    make_campaign: Callable[..., Campaign], base_version: Version, settings: Any
) -> None:
    campaign = make_campaign(items=1, responses=2)
    Slot.objects.all().delete()
    source = {"version": base_version.pk, "temperature": 1.0, "top_p": 1.0, "max_tokens": 8}
    Campaign.objects.update(state=Campaign.State.GENERATING, sources=[source])
    campaign.items.get().responses.all().delete()
    [late] = add_prompts(project=campaign.project, prompts=["And this?"])
    numbers = iter(range(100))

    def reply(body: dict[str, Any]) -> str:
        Item.objects.get_or_create(campaign=campaign, prompt=late)
        connections.close_all()
        return f"Answer {next(numbers)}."

    with scripted(reply) as engine:
        settings.ENGINE_URLS = [engine.url]
        generate_responses(campaign_id=campaign.pk)
        generate_responses(campaign_id=campaign.pk)  # what sending it had queued
    campaign.refresh_from_db()
    assert campaign.state == Campaign.State.OPEN
    assert not campaign.items.filter(slots=None).exists()
