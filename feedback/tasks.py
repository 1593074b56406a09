from __future__ import annotations

from celery import shared_task


@shared_task(name="feedback.tasks.generate_responses")
def generate_responses(campaign_id: int) -> None:
    """Write the missing responses of a campaign."""
    from feedback import services

    services.generate_responses(campaign_id=campaign_id)


@shared_task(name="feedback.tasks.resume_stalled_generations")
def resume_stalled_generations() -> None:
    """Queue generations again whose worker was killed; runs every minute."""
    from feedback import services

    services.resume_stalled_generations()


@shared_task(name="feedback.tasks.tell_completed_campaigns")
def tell_completed_campaigns() -> None:
    """Tell webhooks of campaigns that have all their judgements; runs every minute."""
    from feedback import services

    services.tell_completed_campaigns()


@shared_task(name="feedback.tasks.watch_trust")
def watch_trust() -> None:
    """Test the annotators of campaigns with new judgements; runs every half minute."""
    from feedback import pauses

    pauses.watch_campaigns()


@shared_task(name="feedback.tasks.import_file")
def import_file(import_id: int) -> None:
    """Add a large file; harmless where that is done or another worker is at it."""
    from feedback import imports

    imports.run_import(import_id=import_id)


@shared_task(name="feedback.tasks.resume_imports")
def resume_imports() -> None:
    """Ring again for imports whose worker was killed; runs every half minute."""
    from feedback import imports

    imports.resume_imports()


@shared_task(name="feedback.tasks.rank_campaign")
def rank_campaign(campaign_id: int) -> None:
    """Write how much each open slot of a campaign would tell."""
    from feedback import informative

    informative.rank(campaign_id=campaign_id)


@shared_task(name="feedback.tasks.rank_campaigns")
def rank_campaigns() -> None:
    """Rank the campaigns in the informative order with new judgements; runs every 15 seconds."""
    from feedback import informative

    informative.rank_campaigns()


@shared_task(name="feedback.tasks.write_drafts")
def write_drafts(request_id: int) -> None:
    """Write the missing drafts of a request."""
    from feedback import drafts

    drafts.write_drafts(request_id=request_id)


@shared_task(name="feedback.tasks.resume_stalled_drafts")
def resume_stalled_drafts() -> None:
    """Queue drafts again whose worker was killed; runs every half minute."""
    from feedback import drafts

    drafts.resume_stalled_drafts()
