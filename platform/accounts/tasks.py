from __future__ import annotations

from celery import shared_task


@shared_task(name="accounts.tasks.deliver_webhooks")
def deliver_webhooks() -> None:
    """Queue a delivery for each webhook that has something due; runs every few seconds."""
    from accounts import webhooks

    for webhook_id in webhooks.webhooks_with_due_messages():
        deliver_webhook.delay(webhook_id)


@shared_task(name="accounts.tasks.deliver_webhook")
def deliver_webhook(webhook_id: int) -> None:
    """Send what is due for one webhook."""
    from accounts import webhooks

    webhooks.deliver(webhook_id=webhook_id)


@shared_task(name="accounts.tasks.forget_webhook_messages")
def forget_webhook_messages() -> None:
    """Delete messages that were settled long ago; runs every day."""
    from accounts import webhooks

    webhooks.forget_old_messages()
