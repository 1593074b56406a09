from __future__ import annotations

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.errors import ProductError
from accounts.models import Project
from inference.services import adopt_base, register_base


class Command(BaseCommand):
    """Give a project its base model: version 0, in production until something better is."""

    help = "manage.py adopt_base PROJECT [--base FOLDER under var/bases]"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="the project's slug")
        parser.add_argument(
            "--base", default=settings.DEFAULT_BASE, help="a prepared base's folder"
        )

    def handle(self, *args: Any, project: str, base: str, **options: Any) -> None:
        try:
            found = Project.objects.get(slug=project)
            prepared = register_base(folder=Path(settings.BASES_DIR) / base)
            version = adopt_base(project=found, base=prepared)
        except Project.DoesNotExist:
            raise CommandError(f"There is no project {project}.") from None
        except ProductError as error:
            raise CommandError(error.message) from error
        if version.base != prepared:
            raise CommandError(f"{project} has the base {version.base.name} already.")
        self.stdout.write(f"{project} works with {prepared.name} ({prepared.licence}).")
