from __future__ import annotations

from typing import Any

from django.utils import timezone
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from knox.auth import TokenAuthentication
from knox.crypto import hash_token
from rest_framework import exceptions

from accounts.models import ApiToken, User


def find_token(text: str) -> ApiToken:
    """Return the live token with this text; one query. Raise AuthenticationFailed if none."""
    token = (
        ApiToken.objects.select_related("user", "project").filter(digest=hash_token(text)).first()
    )
    if token is None:
        raise exceptions.AuthenticationFailed(
            "This token is not known. Make a new one on the project's tokens page."
        )
    if token.expiry is not None and token.expiry < timezone.now():
        raise exceptions.AuthenticationFailed(
            f"This token expired on {token.expiry:%Y-%m-%d}. "
            "Make a new one on the project's tokens page."
        )
    if not token.user.is_active:
        raise exceptions.AuthenticationFailed("The owner of this token is no longer active.")
    found: ApiToken = token
    return found


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
