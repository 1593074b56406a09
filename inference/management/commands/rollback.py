from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.errors import ProductError
from accounts.models import Project
from inference import services
from inference.models import AliasName


class Command(BaseCommand):
    """Point an alias back at what it named before."""

    help = "Roll back: manage.py rollback PROJECT --why '…'"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="the project's slug")
        parser.add_argument("--alias", choices=AliasName.values, default=AliasName.PRODUCTION)
        parser.add_argument("--why", default="", help="kept in the ledger")

    def handle(self, *args: Any, project: str, alias: str, why: str, **options: Any) -> None:
        try:
            found = Project.objects.get(slug=project)
            move = services.roll_back(project=found, by=None, why=why, alias_name=AliasName(alias))
        except Project.DoesNotExist:
            raise CommandError(f"There is no project {project}.") from None
        except ProductError as error:
            raise CommandError(error.message) from error
        self.stdout.write(f"{move} ({move.milliseconds:.0f} ms)")
