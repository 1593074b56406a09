"""What serializers of every floor share."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from django.db.models import Model, QuerySet
from rest_framework import serializers
from rest_framework.utils.serializer_helpers import BindingDict

M = TypeVar("M", bound=Model)


def named(rows: QuerySet[M], field: str, pk: int) -> M:
    """Return the row that a field of the body names by its id; a refusal names the field."""
    found = rows.filter(pk=pk).first()
    if found is None:
        kind = rows.model._meta.verbose_name
        raise serializers.ValidationError(
            {field: [f"There is no {kind} with the id {pk} in this project."]}
        )
    return found


class Body(serializers.Serializer[Any]):
    """What a request says: a name that the operation does not know is refused, not passed over.

    Passed over, a misspelt option would be a default that nobody asked for.
    """

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        fields: dict[str, serializers.Field[Any, Any, Any, Any]] = super().get_fields()
        for field in fields.values():
            choice = getattr(field, "child", field)
            if isinstance(choice, serializers.ChoiceField):
                choice.error_messages["invalid_choice"] = (
                    f"“{{input}}” is none of {', '.join(map(str, choice.choices))}."
                )
        return fields

    def to_internal_value(self, data: Any) -> Any:
        names = set(data) if isinstance(data, Mapping) else set()
        unknown = sorted(names - set(self.fields) - {"csrfmiddlewaretoken"})
        if unknown:
            near = difflib.get_close_matches(unknown[0], list(self.fields), n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(self.fields)}."
            raise serializers.ValidationError({unknown[0]: [f"There is no such field. {hint}"]})
        return super().to_internal_value(data)


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
