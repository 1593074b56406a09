from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.errors import ProductError
from accounts.models import Project
from inference import services
from inference.models import AliasName, Version


class Command(BaseCommand):
    """Put a version behind an alias."""

    help = "Promote a version: manage.py promote PROJECT v3 --why '…'"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="the project's slug")
        parser.add_argument("version", help="base, v1, v2 …")
        parser.add_argument("--alias", choices=AliasName.values, default=AliasName.PRODUCTION)
        parser.add_argument("--why", default="", help="kept in the ledger")

    def handle(
        self, *args: Any, project: str, version: str, alias: str, why: str, **options: Any
    ) -> None:
        number = 0 if version == "base" else version.removeprefix("v")
        try:
            found = Project.objects.get(slug=project)
            target = Version.objects.get(project=found, number=int(number))
            move = services.promote(
                project=found, version=target, by=None, why=why, alias_name=AliasName(alias)
            )
        except (Project.DoesNotExist, Version.DoesNotExist, ValueError):
            raise CommandError(f"There is no version {version} in a project {project}.") from None
        except ProductError as error:
            raise CommandError(error.message) from error
        self.stdout.write(f"{move} ({move.milliseconds:.0f} ms)")
