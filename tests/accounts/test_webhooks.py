"""Webhooks: written with the event, signed, sent until they arrive, never into our own network."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from accounts import webhooks
from accounts.errors import ProductError
from accounts.models import Event, Project, User, Webhook, WebhookMessage
from accounts.processes import port_is_free, wait_until
from accounts.sealing import seal, unseal

State = WebhookMessage.State


@dataclass
class Receiver:
    """A real HTTP server that keeps what it was sent and answers as it is told."""

    url: str = ""
    status: int = 200
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver(settings: Any) -> Iterator[Receiver]:
    settings.WEBHOOKS_TO_PRIVATE_ADDRESSES = True
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.seen.append(({key.lower(): v for key, v in self.headers.items()}, body))
            self.send_response(found.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://localhost:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def made(project: Project, owner: User, receiver: Receiver) -> tuple[Webhook, str]:
    return webhooks.create_webhook(
        project=project, url=receiver.url, events=[Event.ALIAS_MOVED], by=owner
    )


def tell(project: Project, **data: Any) -> None:
    webhooks.emit(project=project, event=Event.ALIAS_MOVED, data=data)


def test_it_sends_a_message_that_its_receiver_can_verify(
    project: Project, made: tuple[Webhook, str], receiver: Receiver
) -> None:
    webhook, secret = made
    tell(project, to="v3 – ümlaut")
    assert webhooks.webhooks_with_due_messages() == [webhook.pk]
    assert webhooks.deliver(webhook_id=webhook.pk) == 1
    [(headers, body)] = receiver.seen
    said = standardwebhooks.Webhook(secret).verify(body, headers)
    assert (said["type"], said["data"]) == ("alias.moved", {"to": "v3 – ümlaut"})
    assert headers["host"] == receiver.url.split("/")[2]
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret).verify(body + b" ", headers)
    message = WebhookMessage.objects.get()
    assert (message.state, message.attempts, message.status_code) == (State.DELIVERED, 1, 200)
    assert webhooks.deliver(webhook_id=webhook.pk) == 0


def test_it_tries_again_later_under_the_same_id(
    project: Project, made: tuple[Webhook, str], receiver: Receiver
) -> None:
    webhook, _ = made
    receiver.status = 500
    tell(project, to="v1")
    tell(project, to="v2")
    assert webhooks.deliver(webhook_id=webhook.pk) == 0
    assert len(receiver.seen) == 1  # the first failure ends the round
    first = WebhookMessage.objects.earliest("id")
    assert (first.state, first.error) == (State.PENDING, "The receiver answered 500.")
    assert first.due_at > timezone.now()
    receiver.status = 204
    WebhookMessage.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    assert webhooks.deliver(webhook_id=webhook.pk) == 2
    assert receiver.seen[0][0]["webhook-id"] == receiver.seen[1][0]["webhook-id"]
    assert len({headers["webhook-id"] for headers, _ in receiver.seen}) == 2


@pytest.mark.parametrize(("status", "attempts"), [(410, 0), (500, len(webhooks.RETRIES))])
def test_it_switches_off_what_is_gone_or_failed_for_days(
    project: Project, made: tuple[Webhook, str], receiver: Receiver, status: int, attempts: int
) -> None:
    webhook, _ = made
    receiver.status = status
    tell(project, to="v1")
    WebhookMessage.objects.update(attempts=attempts)
    webhooks.deliver(webhook_id=webhook.pk)
    webhook.refresh_from_db()
    assert not webhook.active
    assert str(status) in webhook.reason
    assert WebhookMessage.objects.get().state == State.FAILED
    tell(project, to="v2")
    assert WebhookMessage.objects.count() == 1


def test_it_leaves_a_silent_receiver_alone_for_a_while(
    project: Project, made: tuple[Webhook, str]
) -> None:
    webhook, _ = made
    Webhook.objects.update(url="http://127.0.0.1:9/")
    tell(project, to="v1")
    tell(project, to="v2")
    webhooks.deliver(webhook_id=webhook.pk)
    assert webhooks.webhooks_with_due_messages() == []
    assert sorted(WebhookMessage.objects.values_list("attempts", flat=True)) == [0, 1]


def test_it_lets_one_worker_send_at_a_time(
    project: Project, made: tuple[Webhook, str], receiver: Receiver
) -> None:
    webhook, _ = made
    tell(project, to="v1")
    Webhook.objects.update(sending_until=timezone.now() + timedelta(seconds=30))
    assert webhooks.deliver(webhook_id=webhook.pk) == 0
    Webhook.objects.update(sending_until=timezone.now() - timedelta(seconds=1))  # it was killed
    assert webhooks.deliver(webhook_id=webhook.pk) == 1


def test_it_forgets_a_message_whose_event_was_rolled_back(
    project: Project, made: tuple[Webhook, str]
) -> None:
    with transaction.atomic():
        tell(project, to="v1")
        transaction.set_rollback(True)
    assert not WebhookMessage.objects.exists()


def test_it_tells_only_the_projects_own_webhooks_of_what_they_ask_for(
    project: Project, made: tuple[Webhook, str], stranger: User
) -> None:
    elsewhere = Project.objects.get(memberships__user=stranger)
    tell(elsewhere, to="v1")
    webhooks.emit(project=project, event=Event.CAMPAIGN_CLOSED, data={})
    assert not WebhookMessage.objects.exists()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://example.com/hook", "begins with https://"),
        ("https://localhost/hook", "inside this site's own network"),
        ("https://127.0.0.1/hook", "inside this site's own network"),
        ("https://[::1]/hook", "inside this site's own network"),
        ("https://169.254.169.254/latest", "inside this site's own network"),
        ("https://no-such-host.invalid/", "leads to no address"),
        ("https://example.com:99999/", "leads to no address"),
    ],
)
def test_it_refuses_addresses_that_it_must_not_reach(
    project: Project, owner: User, url: str, sentence: str
) -> None:
    with pytest.raises(ProductError, match=sentence):
        webhooks.create_webhook(project=project, url=url, events=[Event.ALIAS_MOVED], by=owner)
    assert not Webhook.objects.exists()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2a00:1450:4001::1", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("2002:808:808::", True),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fd00::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::7f00:1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
        ("2002:a9fe:a9fe::1", False),
    ],
)
def test_it_knows_its_own_network_however_it_is_written(address: str, public: bool) -> None:
    assert webhooks._is_public(ipaddress.ip_address(address)) is public


def test_it_reads_no_answer_without_end(
    project: Project, owner: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.WEBHOOKS_TO_PRIVATE_ADDRESSES = True
    sent = 0

    class Endless(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal sent
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while sent < 1 << 26:
                    sent += self.wfile.write(b"x" * 65_536)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        made, _ = webhooks.create_webhook(
            project=project, url=url, events=[Event.ALIAS_MOVED], by=owner
        )
        tell(project, to="v1")
        assert webhooks.deliver(webhook_id=made.pk) == 1
        server.shutdown()
    assert sent < 1 << 26, "all of it was read"


def test_it_checks_the_address_again_when_it_sends(
    project: Project, made: tuple[Webhook, str], receiver: Receiver, settings: Any
) -> None:
    settings.WEBHOOKS_TO_PRIVATE_ADDRESSES = False
    tell(project, to="v1")
    assert webhooks.deliver(webhook_id=made[0].pk) == 0
    assert receiver.seen == []
    assert "https" in WebhookMessage.objects.get().error


def test_it_stores_the_secret_sealed(made: tuple[Webhook, str], settings: Any) -> None:
    webhook, secret = made
    assert secret not in webhook.secret
    assert unseal(webhook.secret) == secret
    assert seal(secret) != webhook.secret
    settings.SECRET_KEY = "another key"
    with pytest.raises(ProductError, match="another SECRET_KEY"):
        unseal(webhook.secret)


def test_it_serves_the_whole_life_of_a_webhook_over_rest(
    project: Project, owner: User, receiver: Receiver, api: Callable[..., APIClient]
) -> None:
    client = api(owner)
    body = {"url": receiver.url, "events": ["alias.moved"]}
    made = client.post("/api/webhooks/", body)
    assert made.status_code == 201
    assert made.json()["secret"].startswith("whsec_")
    pk = made.json()["id"]
    assert "secret" not in client.get(f"/api/webhooks/{pk}/").json()
    tell(project, to="v1")
    webhooks.deliver(webhook_id=pk)
    [message] = client.get(f"/api/webhooks/{pk}/messages/").json()["results"]
    assert message["state"] == "delivered"
    assert message["message_id"] == receiver.seen[0][0]["webhook-id"]
    again = client.post(f"/api/webhooks/{pk}/messages/{message['key']}/send-again")
    assert again.json()["state"] == "pending"
    assert webhooks.deliver(webhook_id=pk) == 1
    assert client.patch(f"/api/webhooks/{pk}/", {"active": False}).json()["active"] is False
    assert client.delete(f"/api/webhooks/{pk}/").status_code == 204
    assert client.get("/api/webhooks/").json()["results"] == []


@pytest.mark.parametrize(
    "body", [{"url": "no address", "events": ["alias.moved"]}, {"url": "https://example.com"}]
)
def test_it_refuses_a_webhook_that_says_too_little(
    owner: User, api: Callable[..., APIClient], body: dict[str, Any]
) -> None:
    assert api(owner).post("/api/webhooks/", body).status_code == 400


def test_it_opens_webhooks_to_admins_of_the_project_only(
    project: Project,
    made: tuple[Webhook, str],
    lead: User,
    stranger: User,
    api: Callable[..., APIClient],
    login: Callable[[User], Client],
) -> None:
    pk = made[0].pk
    elsewhere = Project.objects.get(memberships__user=stranger)
    assert api(lead).get("/api/webhooks/").status_code == 403
    assert api(lead).get(f"/api/webhooks/{pk}/").status_code == 403
    assert api(stranger, of=elsewhere).delete(f"/api/webhooks/{pk}/").status_code == 404
    assert login(lead).get(reverse("webhooks", args=[project.slug])).status_code == 403
    assert login(stranger).get(reverse("webhooks", args=[project.slug])).status_code == 404


def test_it_shows_the_secret_once_and_the_messages_for_good(
    project: Project, owner: User, receiver: Receiver, login: Callable[[User], Client]
) -> None:
    client = login(owner)
    page = reverse("webhooks", args=[project.slug])
    made = client.post(page, {"url": receiver.url, "events": ["alias.moved"]})
    assert "whsec_" in made.content.decode()
    assert "no-store" in made["Cache-Control"]
    assert "whsec_" not in client.get(page).content.decode()
    webhook = Webhook.objects.get()
    tell(project, to="<b>v1</b>")
    webhooks.deliver(webhook_id=webhook.pk)
    shown = client.get(reverse("webhook", args=[project.slug, webhook.pk])).content.decode()
    assert "delivered" in shown
    assert "&lt;b&gt;v1" in shown
    key = WebhookMessage.objects.get().key
    again = reverse("webhook_message_again", args=[project.slug, webhook.pk, key])
    assert client.post(again).status_code == 302
    assert webhooks.deliver(webhook_id=webhook.pk) == 1
    off = reverse("webhook_active", args=[project.slug, webhook.pk])
    client.post(off, {"active": "0"})
    assert not Webhook.objects.get().active
    client.post(reverse("webhook_delete", args=[project.slug, webhook.pk]))
    assert not Webhook.objects.exists()


def test_it_refuses_on_the_page_what_the_service_refuses(
    project: Project, owner: User, login: Callable[[User], Client]
) -> None:
    page = reverse("webhooks", args=[project.slug])
    answer = login(owner).post(page, {"url": "https://127.0.0.1/", "events": ["alias.moved"]})
    assert answer.status_code == 400
    assert "own network" in answer.content.decode()


def test_it_writes_a_body_that_stays_the_same_at_every_attempt(
    project: Project, made: tuple[Webhook, str]
) -> None:
    tell(project, to="v1")
    message = WebhookMessage.objects.get()
    assert message.body == WebhookMessage.objects.get().body
    assert json.loads(message.body)["timestamp"] == message.created_at.isoformat()


def test_it_satisfies_the_receiver_of_the_docs(
    project: Project, owner: User, settings: Any, tmp_path: Path
) -> None:
    settings.WEBHOOKS_TO_PRIVATE_ADDRESSES = True
    text = (settings.BASE_DIR / "docs" / "webhooks.md").read_text()
    [script] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "receiver.py").write_text(script)
    port = next(port for port in range(8300, 8400) if port_is_free(port))
    webhook, secret = webhooks.create_webhook(
        project=project, url=f"http://127.0.0.1:{port}/", events=[Event.ALIAS_MOVED], by=owner
    )
    receiver = subprocess.Popen(
        [sys.executable, "receiver.py", secret, str(port)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: not port_is_free(port), 20)
        tell(project, to="v1")
        assert webhooks.deliver(webhook_id=webhook.pk) == 1
        assert receiver.stdout is not None
        said = receiver.stdout.readline()
        assert said.split()[:2] == [WebhookMessage.objects.get().message_id, "alias.moved"]
    finally:
        receiver.kill()
        receiver.communicate()
    documented = set(re.findall(r"`([a-z]+\.[a-z]+)`", text.partition("```python")[0]))
    assert documented == set(Event.values)
