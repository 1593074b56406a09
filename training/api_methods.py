"""REST: the methods that train, with every argument's meaning, unit, default, limits and source.

The same dataclasses (``training.engine.arguments``) fill the pages' forms and check run.json.
"""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiSerializerFieldExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView
from training.engine.arguments import METHODS, argument_schema
from training.options import METHODS_FOR

JSON_TYPES: dict[str, dict[str, Any]] = {
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "choice": {"type": "string"},
    "list": {"type": "array", "items": {"type": "string"}},
}


class ArgumentsField(serializers.DictField):
    """A method's arguments by name; the service checks them and fills in the rest."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("help_text", "Names and values; what is left out has its default.")
        super().__init__(**{"default": dict, **options})


class ArgumentsFieldExtension(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    """Describe the arguments of each method in the OpenAPI schema."""

    target_class = ArgumentsField

    def map_serializer_field(self, auto_schema: AutoSchema, direction: Any) -> dict[str, Any]:
        components = [
            ResolvedComponent(  # type: ignore[no-untyped-call]
                name=cls.__name__,
                type=ResolvedComponent.SCHEMA,
                object=cls,
                schema=_json_schema(method),
            )
            for method, cls in METHODS.items()
        ]
        for component in components:
            auto_schema.registry.register_on_missing(component)
        return {"anyOf": [component.ref for component in components]}


def _json_schema(method: str) -> dict[str, Any]:
    """Return a method's arguments as a JSON schema."""
    properties = {
        row["name"]: {
            **JSON_TYPES[row["type"]],
            "description": _described(row),
            "default": row["default"],
            **({"enum": row["choices"]} if row["choices"] else {}),
            **{name: row[name] for name in ("minimum", "maximum") if row[name] is not None},
        }
        for row in argument_schema(method)
    }
    return {
        "type": "object",
        "description": METHODS[method].__doc__,
        "properties": properties,
        "additionalProperties": False,
    }


def _described(row: dict[str, Any]) -> str:
    unit = f" Unit: {row['unit']}." if row["unit"] else ""
    source = f" Source: {row['source']}." if row["source"] else ""
    return f"{row['meaning']}{unit}{source}"


class ArgumentSerializer(serializers.Serializer[Any]):
    """One argument of a method."""

    name = serializers.CharField()
    type = serializers.ChoiceField(choices=list(JSON_TYPES))
    choices = serializers.ListField(child=serializers.CharField(), allow_null=True)
    default = serializers.JSONField()
    meaning = serializers.CharField()
    unit = serializers.CharField(allow_blank=True)
    source = serializers.CharField(allow_blank=True)  # type: ignore[assignment]
    minimum = serializers.FloatField(allow_null=True)
    maximum = serializers.FloatField(allow_null=True)
    basic = serializers.BooleanField(help_text="It stands on the short form.")


class MethodsView(ProjectAPIView):
    class Output(serializers.Serializer[Any]):
        name = serializers.CharField()
        meaning = serializers.CharField()
        learns_from = serializers.ListField(
            child=serializers.CharField(), help_text="The kinds of snapshots."
        )
        arguments = ArgumentSerializer(many=True)

    @extend_schema(responses=Output(many=True))
    def get(self, request: Request) -> Response:
        """List the methods that train, what each learns from, and its arguments."""
        return Response(
            [
                {
                    "name": name,
                    "meaning": cls.__doc__,
                    "learns_from": [kind for kind in METHODS_FOR if name in METHODS_FOR[kind]],
                    "arguments": argument_schema(name),
                }
                for name, cls in METHODS.items()
            ]
        )
