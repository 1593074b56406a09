"""What serializers share: fields made once for the hottest input, and numbers that are numbers."""

from __future__ import annotations

import math
from typing import Any

from rest_framework import serializers
from rest_framework.utils.serializer_helpers import BindingDict


class FiniteField(serializers.FloatField):
    """A number as JSON has them; DRF's own takes “nan” and “inf”, which pass every comparison."""

    def to_internal_value(self, data: Any) -> float:
        number: float = super().to_internal_value(data)
        if not math.isfinite(number):
            self.fail("invalid")
        return number


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
