from __future__ import annotations

import getpass
import os
from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from accounts.errors import ProductError
from accounts.models import Project, Role, User
from accounts.services import create_project, set_member


class Command(BaseCommand):
    """Give somebody a role in a project, making the account or the project where there is none."""

    help = (
        "manage.py add_member PROJECT USERNAME ROLE — asks for a password when the account is new "
        "(or takes it from LAUREL_PASSWORD); --create makes the project with this admin."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="the project's slug, or its name with --create")
        parser.add_argument("username")
        parser.add_argument("role", choices=Role.values)
        parser.add_argument("--create", action="store_true", help="make the project")

    def handle(
        self, *args: Any, project: str, username: str, role: str, create: bool, **options: Any
    ) -> None:
        password = None
        if not User.objects.filter(username=username).exists():
            password = os.environ.get("LAUREL_PASSWORD") or getpass.getpass(
                f"Password for the new account {username}: "
            )
        try:
            with transaction.atomic():
                user = self._user(username, password)
                found = (
                    create_project(name=project, by=user)
                    if create
                    else Project.objects.get(slug=project)
                )
                set_member(project=found, user=user, role=Role(role))
        except Project.DoesNotExist:
            raise CommandError(
                f"There is no project {project}. Give its slug, or --create to make it."
            ) from None
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        except ProductError as error:
            raise CommandError(error.message) from error
        self.stdout.write(f"{username} is {role} in {found.slug}.")

    def _user(self, username: str, password: str | None) -> User:
        if password is None:
            return User.objects.get(username=username)
        user = User(username=username)
        validate_password(password, user)
        user.set_password(password)
        user.full_clean()
        user.save()
        return user
