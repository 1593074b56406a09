"""Rules that score a response to a prompt: what simulated annotators and evaluations prefer."""

from __future__ import annotations

import re

_HEDGE = re.compile(
    r"\b(as an ai|certainly|of course|i'd be happy|great question|it's important to note|"
    r"there are (many|several)|in conclusion|overall)\b",
    re.IGNORECASE,
)


SENTENCE_ENDS = tuple(".!?:)]\"'”’»*`")
# Up to so many words, an answer needs no full stop to be whole: "Paris", "About 40 days".
FRAGMENT_WORDS = 12
CUT_OFF = -100.0


def concise(prompt: str, response: str) -> float:
    """Prefer short, direct answers: minus the words, minus ten for each filler phrase.

    All answers that were cut off before their end are alike, and worse than any that came to it
    within ninety words. An answer that says nothing is the worst: the shortest is not simply best.
    """
    words = len(response.split())
    if words == 0:
        return -1000.0
    if words > FRAGMENT_WORDS and not response.rstrip().endswith(SENTENCE_ENDS):
        return CUT_OFF
    return -float(words) - 10.0 * len(_HEDGE.findall(response))
