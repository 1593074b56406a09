"""Read the JSON that others send: only what can be stored and sent on as it came.

Python's own reader takes more than JSON is: NaN and infinities, ``1e999``, half a character,
numbers without end, and nesting until the interpreter gives up. PostgreSQL refuses some of that,
the rest comes out again in answers that are no JSON. Every request body goes through ``read_json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from rest_framework import parsers
from rest_framework.exceptions import ParseError

MOST_NESTED = 64
# As PostgreSQL's bigint.
MOST_WHOLE = 2**63
# A text with neither holds no NUL and no lone surrogate: JSON has them in escapes only.
_SUSPECT = (b"\\u0000", b"\\ud", b"\\uD")


class Unreadable(ValueError):
    """A body that is no JSON, or holds what cannot be kept; it reads as a sentence."""


def read_json(body: bytes) -> Any:
    """Return the value of a UTF-8 JSON text; Unreadable with a sentence where it is none."""
    try:
        value = json.loads(
            body.decode(), parse_constant=_no_number, parse_float=_finite, parse_int=_whole
        )
    except UnicodeDecodeError:
        raise Unreadable("This is not UTF-8 text. Send JSON in UTF-8.") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise Unreadable(f"This is not JSON: {error}.") from None
    if body.count(b"[") + body.count(b"{") > MOST_NESTED or any(one in body for one in _SUSPECT):
        _check(value)
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is larger than a number can be")
    return number


def _whole(text: str) -> int:
    # Longer texts than this are not even read: that takes the square of their length.
    number = int(text[:21])
    if not -MOST_WHOLE <= number < MOST_WHOLE:
        raise ValueError(f"{text[:20]} is larger than a number can be")
    return number


def _too_deep() -> Unreadable:
    return Unreadable(f"The JSON is nested more than {MOST_NESTED} deep. Send it flatter.")


def _check(value: Any) -> None:
    """Raise Unreadable for what is nested too deep, or text that no database keeps."""
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for one in level:
            if isinstance(one, str):
                _check_text(one)
            elif isinstance(one, dict | list):
                if depth == MOST_NESTED:
                    raise _too_deep()
                below += one if isinstance(one, list) else [*one, *one.values()]
        level, depth = below, depth + 1


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise Unreadable("A text has a NUL character. Remove it.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unreadable("A text has half of a character (a lone surrogate).") from None


class JSONParser(parsers.JSONParser):
    """Reads JSON bodies under /api/; the charset that a header names changes nothing (RFC 8259)."""

    def parse(
        self,
        stream: IO[bytes],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the body's value, or raise a ParseError with its sentence."""
        try:
            return read_json(stream.read())
        except Unreadable as error:
            raise ParseError(str(error)) from None
