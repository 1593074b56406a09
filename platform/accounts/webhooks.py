"""Tell other programs what happens in a project: an outbox, signed and sent until it arrives.

A message is a row written with the event itself, so neither a crash nor a rollback parts the two.
Workers send what is due; an answer other than 2xx is tried again after the delays that Standard
Webhooks recommends (https://www.standardwebhooks.com), under the same ``webhook-id``. Delivery is
at least once: receivers drop what they have seen.
"""

from __future__ import annotations

import base64
import ipaddress
import secrets
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import standardwebhooks
from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from accounts.errors import ProductError
from accounts.models import Event, Project, User, Webhook, WebhookMessage
from accounts.sealing import seal, unseal
from accounts.services import audit

RETRIES = [
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    *(timedelta(hours=hours) for hours in (2, 5, 10, 14, 20, 24)),
]
TIMEOUT_SECONDS = 15.0
# Longer than an attempt can take: a worker that was killed holds a webhook up no longer than this.
LEASE = timedelta(minutes=1)
# How long a receiver that did not answer at all is left alone.
SILENCE = timedelta(seconds=30)
BATCH = 100
KEPT = timedelta(days=30)
GONE = 410
# Nothing but the status of an answer is used.
MOST_ANSWERED = 65_536
# IPv6 whose last four bytes are an IPv4 address: NAT64 (RFC 6052), and the old compatible form.
CARRY_IPV4 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))


@transaction.atomic
def create_webhook(
    *, project: Project, url: str, events: Sequence[Event], by: User
) -> tuple[Webhook, str]:
    """Return a new webhook and its signing secret, shown only now."""
    if not events:
        raise ProductError("Choose at least one event to be told of.")
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    webhook = Webhook(
        project=project, url=url, events=sorted(set(events)), secret=seal(secret), created_by=by
    )
    webhook.full_clean()
    _address(url)
    webhook.save()
    audit(project=project, by=by, action="webhook.create", target=url, events=webhook.events)
    return webhook, secret


@transaction.atomic
def set_active(*, webhook: Webhook, active: bool, by: User) -> None:
    """Switch a webhook on or off; what happens while it is off is not told later."""
    Webhook.objects.filter(pk=webhook.pk).update(active=active, reason="")
    action = "webhook.resume" if active else "webhook.pause"
    audit(project=webhook.project, by=by, action=action, target=webhook.url)


@transaction.atomic
def delete_webhook(*, webhook: Webhook, by: User) -> None:
    """Forget a webhook with all its messages."""
    audit(project=webhook.project, by=by, action="webhook.delete", target=webhook.url)
    webhook.delete()


def emit(*, project: Project, event: Event, data: dict[str, Any]) -> None:
    """Queue an event for every webhook of the project that asks for it, in this transaction.

    Judgements and campaigns do not come this way: triggers of feedback's migrations write their
    messages, so that no path of the code forgets them and judging costs no statement more.
    """
    asking = Webhook.objects.filter(project=project, active=True, events__contains=[event])
    WebhookMessage.objects.bulk_create(
        WebhookMessage(webhook=webhook, event=event, data=data) for webhook in asking
    )


def send_again(*, message: WebhookMessage) -> None:
    """Queue one message anew, whatever became of it, under the same id."""
    WebhookMessage.objects.filter(pk=message.pk).update(
        state=WebhookMessage.State.PENDING, due_at=Now(), attempts=0, delivered_at=None
    )


def webhooks_with_due_messages() -> list[int]:
    """Return the ids of the webhooks that have something to send and nobody sending it."""
    due = WebhookMessage.objects.due().filter(webhook__in=Webhook.objects.free())
    return sorted(set(due.values_list("webhook", flat=True)))


def forget_old_messages() -> int:
    """Delete messages that were settled long ago; return how many."""
    old = WebhookMessage.objects.exclude(state=WebhookMessage.State.PENDING)
    return old.filter(created_at__lt=timezone.now() - KEPT).delete()[0]


def deliver(*, webhook_id: int) -> int:
    """Send what is due for one webhook, oldest first; return how many messages arrived.

    Nobody else sends for it meanwhile. The first message that fails ends the round, and a receiver
    that did not even answer is left alone for a while: it costs one time-out, not one a message.
    """
    if not Webhook.objects.free().filter(pk=webhook_id).update(sending_until=Now() + LEASE):
        return 0
    webhook = Webhook.objects.get(pk=webhook_id)
    arrived, pause = 0, None
    # No redirects and no proxies of the environment: only the address that was checked.
    with httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False) as client:
        due = WebhookMessage.objects.due().filter(webhook=webhook).order_by("due_at", "id")
        for message in due[:BATCH]:
            Webhook.objects.filter(pk=webhook_id).update(sending_until=Now() + LEASE)
            status, error = _attempt(client, webhook, message)
            _note(message, status, error)
            if error:
                pause = None if status else Now() + SILENCE
                break
            arrived += 1
    Webhook.objects.filter(pk=webhook_id).update(sending_until=pause)
    return arrived


def _attempt(
    client: httpx.Client, webhook: Webhook, message: WebhookMessage
) -> tuple[int | None, str]:
    """Send one message; return the status, if there was an answer, and what went wrong, if any."""
    try:
        status = _post(client, webhook, message)
    except (httpx.HTTPError, ProductError) as refusal:
        return None, str(refusal) or type(refusal).__name__
    return status, "" if 200 <= status < 300 else f"The receiver answered {status}."


def _note(message: WebhookMessage, status: int | None, error: str) -> None:
    """Write down what came of an attempt: delivered, due again later, or given up."""
    row = WebhookMessage.objects.filter(pk=message.pk)
    attempts = message.attempts + 1
    seen = {"attempts": attempts, "status_code": status, "error": error[:300]}
    if not error:
        row.update(state=WebhookMessage.State.DELIVERED, delivered_at=Now(), **seen)
    elif attempts <= len(RETRIES) and status != GONE:
        row.update(due_at=Now() + RETRIES[attempts - 1], **seen)
    else:
        row.update(state=WebhookMessage.State.FAILED, **seen)
        _switch_off(message.webhook, error)


def _post(client: httpx.Client, webhook: Webhook, message: WebhookMessage) -> int:
    """Sign and post a message to the address that was checked; return the status."""
    now = datetime.now(UTC)
    signer = standardwebhooks.Webhook(unseal(webhook.secret))
    host, url = _address(webhook.url)
    with client.stream(
        "POST",
        url,
        content=message.body.encode(),
        headers={
            "Host": host,
            "Content-Type": "application/json",
            "User-Agent": "Laurel-Webhooks",
            "webhook-id": message.message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": signer.sign(message.message_id, now, message.body),
        },
        extensions={"sni_hostname": urlsplit(webhook.url).hostname},
    ) as response:
        _read_a_little(response)
        return response.status_code


def _read_a_little(response: httpx.Response) -> None:
    """Read a short answer, so that its connection serves the next message; leave a long one.

    As it came: it may have no end, come a byte at a time, or unpack to more than the memory.
    """
    read, latest = 0, time.monotonic() + TIMEOUT_SECONDS
    for part in response.iter_raw():
        read += len(part)
        if read > MOST_ANSWERED or time.monotonic() > latest:
            return


def _address(url: str) -> tuple[str, str]:
    """Return the Host header and the URL with the host's address in its name's place.

    ProductError for an address inside this site's own network, unless the site allows it: an admin
    of one project must not reach through us what the network keeps from them. The name is looked
    up once, here, so that a second answer cannot lead elsewhere.
    """
    parts = urlsplit(url)
    inside = settings.WEBHOOKS_TO_PRIVATE_ADDRESSES
    if parts.scheme != "https" and not inside:
        raise ProductError("A webhook's address begins with https://.")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        raise ProductError(f"The name {parts.hostname} leads to no address.") from None
    address = ipaddress.ip_address(found[0][4][0])
    if not _is_public(address) and not inside:
        raise ProductError(
            f"{parts.hostname} lies inside this site's own network, where webhooks may not go. "
            "Whoever runs the site can allow it with WEBHOOKS_TO_PRIVATE_ADDRESSES."
        )
    literal = f"[{address}]" if address.version == 6 else str(address)
    return parts.netloc.rpartition("@")[2], parts._replace(netloc=f"{literal}:{port}").geturl()


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Say whether an address lies in the open internet.

    An IPv6 address that stands for an IPv4 one (mapped, NAT64, 6to4) is where that one is.
    """
    if isinstance(address, ipaddress.IPv6Address):
        meant = address.ipv4_mapped or address.sixtofour
        if meant is None and any(address in network for network in CARRY_IPV4):
            meant = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if meant is not None:
            return _is_public(meant)
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast


def _switch_off(webhook: Webhook, error: str) -> None:
    """Stop telling an address that is gone or did not answer for days."""
    reason = f"Switched off: {error}"[:300]
    if Webhook.objects.filter(pk=webhook.pk, active=True).update(active=False, reason=reason):
        audit(project=webhook.project, by=None, action="webhook.give_up", target=webhook.url)
