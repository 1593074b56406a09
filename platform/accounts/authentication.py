from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any

from django.db.models import Model
from django.utils import timezone
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from knox.auth import TokenAuthentication
from knox.crypto import hash_token
from rest_framework import exceptions

from accounts.models import ApiToken, Project, User
from accounts.statements import one_row

_PARTS: list[tuple[type[Model], str]] = [
    (ApiToken, "token"),
    (User, "owner"),
    (Project, "project"),
]


def find_token(text: str) -> ApiToken:
    """Return the live token with this text; one query. Raise AuthenticationFailed if none."""
    row = one_row(_look_up(), {"digest": hash_token(text)})
    if row is None:
        raise exceptions.AuthenticationFailed(
            "This token is not known. Make a new one on the project's tokens page."
        )
    token, token.user, token.project = _read(row)
    if token.expiry is not None and token.expiry < timezone.now():
        raise exceptions.AuthenticationFailed(
            f"This token expired on {token.expiry:%Y-%m-%d}. "
            "Make a new one on the project's tokens page."
        )
    if not token.user.is_active:
        raise exceptions.AuthenticationFailed("The owner of this token is no longer active.")
    found: ApiToken = token
    return found


@cache
def _look_up() -> str:
    """Return the statement that brings a token, its owner and its project in full."""
    columns = [
        f'{alias}."{field.column}"'
        for model, alias in _PARTS
        for field in model._meta.concrete_fields
    ]
    return (
        f"SELECT {', '.join(columns)} FROM accounts_apitoken AS token"
        " JOIN accounts_user AS owner ON owner.id = token.user_id"
        " JOIN accounts_project AS project ON project.id = token.project_id"
        " WHERE token.digest = %(digest)s"
    )


def _read(row: tuple[Any, ...]) -> Iterator[Any]:
    values = iter(row)
    for model, _ in _PARTS:
        names = [field.attname for field in model._meta.concrete_fields]
        yield model.from_db(None, names, list(islice(values, len(names))))


class ApiTokenAuthentication(TokenAuthentication):
    """Authenticate ``Authorization: Bearer laurel_…``; keep expired tokens so as to name the day.

    Knox's own look-up deletes expired tokens of the same user on every request; ours reads one row.
    """

    def authenticate_credentials(self, token: bytes) -> tuple[User, ApiToken]:
        try:
            text = token.decode("ascii")
        except UnicodeDecodeError:
            raise exceptions.AuthenticationFailed("A token has only plain letters.") from None
        found = find_token(text)
        return found.user, found


class ApiTokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """Describe the bearer token in the OpenAPI schema."""

    target_class = ApiTokenAuthentication
    name = "token"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer"}
