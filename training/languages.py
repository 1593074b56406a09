"""Tell the language of a text, the same on every machine.

The model and its features are py3langid's (Lui and Baldwin 2012). The sum over them is our own, in
whole numbers: a floating-point one ends in other bits on another processor, which would decide
between two close languages.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from importlib.metadata import version
from math import isqrt

import numpy as np

# What the model tells apart, by ISO 639 code; py3langid's own list, without "no language".
_CODES = (
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu "
    "ext fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is "
    "it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne "
    "nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw ta "
    "te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu"
)
CODES = frozenset(_CODES.split())
UNDETERMINED = "und"
# Shorter texts are mostly names, numbers and “OK”; of longer ones the beginning tells enough.
LEAST_CHARACTERS, LOOKED_AT = 20, 256
# Logarithms in steps of 2**-16; the model's own numbers are float16 below 16, so steps of 2**-9.
_STEPS, _MODEL_STEPS = 2**16, 2**9
# A text has no more bytes than this, even where NFC makes three characters of one.
_MOST_COUNTED = LOOKED_AT * 4 * 3
_NO_LANGUAGE = "zxx"


class Detector:
    """py3langid's model, about 100 MB; ``name`` goes into the manifest."""

    name = f"py3langid {version('py3langid')}"

    def __init__(self) -> None:
        # Slow to load, and few builds need it.
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        model = LanguageIdentifier.from_model_file(MODEL_FILE)
        self._next = model.tk_nextmove
        self._rows = [row << 8 for row in model.tk_row]
        self._features = model.tk_output
        self._labels = model.nb_classes
        # Some languages have a column for each script.
        places = {label: place for place, label in enumerate(dict.fromkeys(self._labels))}
        self._columns = np.array([places[label] for label in self._labels])
        self._table = np.rint(model.nb_ptc.astype(np.float32) * _MODEL_STEPS).astype(np.int16)
        self._prior = np.rint(model.nb_pc.astype(np.float64) * (_MODEL_STEPS * _STEPS))
        self._logarithms = np.rint(np.log1p(np.arange(_MOST_COUNTED + 1)) * _STEPS)

    def __call__(self, text: str) -> str:
        """Return an ISO 639 code, or “und” for what is short, no language or between two.

        The first language must be e times as likely as the second, where likelihoods are taken to
        the power of 1 / sqrt(bytes), since the features of a text are not independent.
        """
        from py3langid.langid import visit_counts

        text = text.strip()[:LOOKED_AT]
        if len(text) < LEAST_CHARACTERS:
            return UNDETERMINED
        if text.isupper():
            text = text.lower()
        content = unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")
        visits = visit_counts(self._next, self._rows, self._features, content)
        if not visits:
            return UNDETERMINED
        counts = np.fromiter(visits.values(), np.intp, len(visits))
        rows = self._table[np.fromiter(visits.keys(), np.intp, len(visits))]
        # Whole numbers below 2**53: float64 adds them without rounding, in any order.
        scores = self._logarithms[counts] @ rows.astype(np.float64) + self._prior
        first = int(scores.argmax())
        others = scores[self._columns != self._columns[first]]
        lead = int(scores[first] - others.max())
        if lead < isqrt(len(content) * (_STEPS * _MODEL_STEPS) ** 2):
            return UNDETERMINED
        label = str(self._labels[first])
        return UNDETERMINED if label == _NO_LANGUAGE else label


@cache
def detector() -> Detector:
    """Return the one detector of this process."""
    return Detector()
