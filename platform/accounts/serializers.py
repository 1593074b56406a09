"""A serializer for the hottest input: its fields are made once."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers
from rest_framework.utils.serializer_helpers import BindingDict


class SharedFieldsSerializer(serializers.Serializer[Any]):
    """Validate input with the same field objects in every request and thread.

    DRF copies all declared fields for each instance, which took two thirds of what checking a
    judgement cost. Only for flat input without partial updates or context: the fields belong to
    none of the requests.
    """

    @property
    def fields(self) -> BindingDict:
        shared: BindingDict | None = type(self).__dict__.get("_shared_fields")
        if shared is None:
            shared = BindingDict(type(self)())
            for name, field in self.get_fields().items():
                shared[name] = field
            type(self)._shared_fields = shared  # type: ignore[attr-defined]
        return shared
