from __future__ import annotations

from celery import shared_task


@shared_task(name="training.tasks.build_snapshot")
def build_snapshot(snapshot_id: int) -> None:
    """Write a queued snapshot's files."""
    from training import snapshots

    snapshots.build_snapshot(snapshot_id=snapshot_id)


@shared_task(name="training.tasks.execute_run")
def execute_run(run_id: int) -> None:
    """Execute a waiting run; harmless when it is not waiting."""
    from training import runs

    runs.execute_run(run_id=run_id)


@shared_task(name="training.tasks.evaluate")
def evaluate(evaluation_id: int) -> None:
    """Compare two versions on held-out prompts."""
    from training import evaluation

    evaluation.evaluate(evaluation_id=evaluation_id)


@shared_task(name="training.tasks.advance_rebuilds")
def advance_rebuilds() -> None:
    """Queue what can be made again after retractions; delete what was erased."""
    from training import retraction

    retraction.erase_files()
    retraction.advance_rebuilds()


@shared_task(name="training.tasks.tick_schedules")
def tick_schedules() -> None:
    """Begin the rounds that are due and move the live ones on."""
    from training import schedules

    schedules.tick()


@shared_task(name="training.tasks.sweep_runs")
def sweep_runs() -> None:
    """Take up runs whose worker fell silent, and rounds' next rungs; runs every few seconds."""
    from training import rounds, runs

    rounds.advance_rounds()
    runs.sweep_runs()


@shared_task(name="training.tasks.sweep_builds")
def sweep_builds() -> None:
    """Take up snapshots and evaluations whose worker fell silent; runs every few seconds."""
    from training import evaluation, snapshots

    snapshots.sweep_builds()
    evaluation.sweep_evaluations()


@shared_task(name="training.tasks.settle_evaluations")
def settle_evaluations() -> None:
    """Finish comparisons by people whose judgements are all in; runs every few seconds."""
    from training import evaluation

    evaluation.settle_evaluations()
