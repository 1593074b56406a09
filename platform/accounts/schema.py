"""The OpenAPI schema: names that do not clash, pages of lists, and the one shape of errors."""

from __future__ import annotations

from typing import Any

from drf_spectacular.openapi import AutoSchema
from rest_framework import serializers


class ErrorOutput(serializers.Serializer[Any]):
    """What every refusal says, whatever its status."""

    message = serializers.CharField(help_text="One sentence that says what to do.")
    extra = serializers.DictField(help_text="Details for programs, such as “fields”.")


class LaurelSchema(AutoSchema):
    """Name a serializer inside a view after both: CampaignsView.Input → CampaignsInput.

    A view with a ``pagination_class`` answers GET with a page. Every operation may be refused.
    """

    def _get_serializer_name(
        self, serializer: Any, direction: Any, bypass_extensions: bool = False
    ) -> str:
        name: str = super()._get_serializer_name(serializer, direction, bypass_extensions)
        cls = serializer if isinstance(serializer, type) else type(serializer)
        outer = cls.__qualname__.split(".")[:-1]
        return "".join(part.removesuffix("View") for part in outer) + name

    def _get_paginator(self) -> Any:
        if self.method != "GET":
            return None
        return super()._get_paginator()  # type: ignore[no-untyped-call]

    def _get_response_bodies(self, direction: Any = "response") -> dict[str, Any]:
        bodies: dict[str, Any] = super()._get_response_bodies(direction)
        refusal = self._get_response_for_code(  # type: ignore[no-untyped-call]
            ErrorOutput, "default", ["application/json"]
        )
        return bodies | {"default": refusal | {"description": "Refused: 4xx, or 503 to try again."}}
