from __future__ import annotations

from typing import Any

from drf_spectacular.openapi import AutoSchema


class NestedNamesSchema(AutoSchema):
    """Name a serializer inside a view after both: CampaignsView.Input → CampaignsInput."""

    def _get_serializer_name(
        self, serializer: Any, direction: Any, bypass_extensions: bool = False
    ) -> str:
        name: str = super()._get_serializer_name(serializer, direction, bypass_extensions)
        cls = serializer if isinstance(serializer, type) else type(serializer)
        outer = cls.__qualname__.split(".")[:-1]
        return "".join(part.removesuffix("View") for part in outer) + name
