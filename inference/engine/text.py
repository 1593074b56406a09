"""Tokens to text, piece by piece: whole characters only, and nothing past a stop string."""

from __future__ import annotations

from typing import Any

BROKEN = "�"  # what a tokenizer shows for an unfinished character


class Detokenizer:
    """Turn a growing list of tokens into text; the pieces add up to the whole decoding."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        # Tokens before _shown are out; those from _context on are decoded with new ones, since a
        # token may look different at the beginning of a text.
        self._context = self._shown = 0

    def add(self, token: int) -> str:
        """Take a token; return the text it completes, perhaps none."""
        self._tokens.append(token)
        return self._advance(unfinished=False)

    def finish(self) -> str:
        """Return what is still held back, however broken."""
        return self._advance(unfinished=True)

    def _advance(self, *, unfinished: bool) -> str:
        known = self._decode(self._tokens[self._context : self._shown])
        text = self._decode(self._tokens[self._context :])
        if len(text) <= len(known) or (text.endswith(BROKEN) and not unfinished):
            return ""
        self._context, self._shown = self._shown, len(self._tokens)
        return text[len(known) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


class StopStrings:
    """Let text through until a stop string; hold back what may be the beginning of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Return (text to show, whether a stop string was met). The stop string is not shown."""
        if not self._stops:
            return text, False
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            return self._held[: min(found)], True
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def finish(self) -> str:
        """Return what was held back: no stop string came of it."""
        return self._held

    def _overlap(self, stop: str) -> int:
        """Return the longest end of the held text that begins the stop string."""
        for size in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if stop.startswith(self._held[-size:]):
                return size
        return 0
