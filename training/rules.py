"""Rules that score a response to a prompt: what simulated annotators and evaluations prefer."""

from __future__ import annotations

import re

_HEDGE = re.compile(
    r"\b(as an ai|certainly|of course|i'd be happy|great question|it's important to note|"
    r"there are (many|several)|in conclusion|overall)\b",
    re.IGNORECASE,
)


def concise(prompt: str, response: str) -> float:
    """Prefer short, direct answers: minus the words, minus ten for each filler phrase.

    An answer that says nothing is the worst, so the shortest is not simply the best.
    """
    words = len(response.split())
    if words == 0:
        return -1000.0
    return -float(words) - 10.0 * len(_HEDGE.findall(response))
