from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction

from accounts.models import Project, Role, Scope, User
from accounts.services import create_project, create_token, set_member
from inference.services import adopt_base, register_base

PEOPLE = {
    "admin": Role.ADMIN,
    "lead": Role.LEAD,
    "annotator-1": Role.ANNOTATOR,
    "annotator-2": Role.ANNOTATOR,
    "annotator-3": Role.ANNOTATOR,
}


class Command(BaseCommand):
    """Make a fresh demo project with its people, and write their log-ins and tokens to a file."""

    help = "Make a fresh demo project; write log-ins and tokens to FILE (mode 0600)."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path)

    @transaction.atomic
    def handle(self, *args: Any, file: Path, **options: Any) -> None:
        earlier = json.loads(file.read_text()) if file.exists() else {}
        password = earlier.get("password") or secrets.token_urlsafe(9)
        base = register_base(folder=Path(settings.BASES_DIR) / settings.DEFAULT_BASE)
        people = {name: self._person(f"demo-{name}", password) for name in PEOPLE}
        project = create_project(name=self._name(), by=people["admin"])
        version = adopt_base(project=project, base=base, by=people["admin"])
        tokens = {}
        for name, role in PEOPLE.items():
            set_member(project=project, user=people[name], role=role)
            _, tokens[name] = create_token(
                project=project, user=people[name], name="demo", scopes=list(Scope), days=7
            )
        facts = {
            "project": project.slug,
            "base_version": version.pk,
            "password": password,
            "people": {name: user.username for name, user in people.items()},
            "tokens": tokens,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(json.dumps(facts, indent=1))

    def _person(self, username: str, password: str) -> User:
        user, _ = User.objects.get_or_create(username=username)
        user.set_password(password)
        user.save(update_fields=["password"])
        return user

    def _name(self) -> str:
        number = Project.objects.filter(name__startswith="Demo").count() + 1
        return f"Demo {number}"
