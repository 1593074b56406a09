from __future__ import annotations

import importlib
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection, transaction

from accounts.models import ApiToken, Membership, Role, Scope, User
from accounts.services import create_token, set_member
from feedback.models import Campaign
from feedback.simulation import NOISE, Annotator, Profile

DEFAULT_PREFERENCE = "training.rules:concise"


class Command(BaseCommand):
    """Let simulated annotators judge a campaign over HTTP, as people and programs do."""

    help = "Let simulated annotators of one profile judge a campaign over HTTP."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--campaign", type=int, required=True, help="the campaign's id")
        parser.add_argument(
            "--profile", choices=[str(profile) for profile in Profile], default="honest"
        )
        parser.add_argument("--annotators", type=int, default=1, help="how many of them")
        parser.add_argument("--judgements", type=int, help="how many each judges at most")
        parser.add_argument(
            "--preference",
            default=DEFAULT_PREFERENCE,
            help="module:function that scores (prompt, response): the hidden truth",
        )
        parser.add_argument("--noise", type=float, default=NOISE, help="scale of the Gumbel noise")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--url", help="where Laurel answers; default: this machine's WEB_PORT")

    def handle(
        self,
        *args: Any,
        campaign: int,
        profile: str = "honest",
        annotators: int = 1,
        judgements: int | None = None,
        preference: str = DEFAULT_PREFERENCE,
        noise: float = NOISE,
        seed: int = 0,
        url: str | None = None,
        **options: Any,
    ) -> None:
        found = Campaign.objects.select_related("project").filter(pk=campaign).first()
        if found is None:
            raise CommandError(f"There is no campaign {campaign}.")
        if annotators < 1 or (judgements is not None and judgements < 1):
            raise CommandError("--annotators and --judgements are 1 or more.")
        prefers = _preference(preference)
        url = url or f"http://127.0.0.1:{os.environ.get('WEB_PORT', '8100')}"
        names = [f"sim-{profile}-{number}" for number in range(1, annotators + 1)]
        tokens = {name: _enrol(found, name) for name in names}
        try:
            people = [
                Annotator(
                    name=name,
                    http=httpx.Client(
                        base_url=url,
                        headers={"Authorization": f"Bearer {text}"},
                        timeout=60,
                        trust_env=False,
                    ),
                    campaign=found.pk,
                    preference=prefers,
                    noise=noise,
                    seed=seed,
                    profile=Profile(profile),
                    most=judgements,
                )
                for name, (_, text) in tokens.items()
            ]
            with ThreadPoolExecutor(min(annotators, 32)) as threads:
                counts = list(threads.map(Annotator.work, people))
        finally:
            # A simulated person's token is good for one run.
            ApiToken.objects.filter(pk__in=[token.pk for token, _ in tokens.values()]).delete()
            connection.close()
        for one, count in zip(people, counts, strict=True):
            times = one.task_milliseconds
            middle = f", median {statistics.median(times):.0f} ms" if times else ""
            self.stdout.write(f"{one.name}: {count} judgements{middle}")
        self.stdout.write(self.style.SUCCESS(f"{sum(counts)} judgements in “{found.name}”."))


def _preference(path: str) -> Callable[[str, str], float]:
    module, _, name = path.partition(":")
    try:
        found: Callable[[str, str], float] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CommandError(
            f"--preference names module:function, such as {DEFAULT_PREFERENCE}: {error}"
        ) from error
    return found


@transaction.atomic
def _enrol(campaign: Campaign, name: str) -> tuple[ApiToken, str]:
    """Return a fresh token of the simulated person, who becomes an annotator of the project."""
    user, made = User.objects.get_or_create(username=name)
    if made:
        user.set_unusable_password()
        user.save()
    elif user.has_usable_password():
        raise CommandError(f"“{name}” is somebody with a password, not a simulated annotator.")
    if not Membership.objects.filter(user=user, project=campaign.project).exists():
        set_member(project=campaign.project, user=user, role=Role.ANNOTATOR)
    return create_token(
        project=campaign.project, user=user, name="simulate", scopes=[Scope.JUDGE], days=1
    )
