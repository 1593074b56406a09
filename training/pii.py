"""Find personal data that has a form: addresses, numbers and codes, not names.

Presidio's recognisers do it, those that need no model of a language, with their check digits. They
are an extra, since spaCy comes with them. What they find depends on their version, the plan of
telephone numbers and the list of top-level domains, so the versions of these go into the manifest.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import NamedTuple, Protocol

from accounts.errors import ProductError

PACKAGES = ("presidio-analyzer", "presidio-anonymizer", "phonenumbers", "tldextract")
# What all that is looked for has at least one of; most texts have none.
_MAYBE = re.compile(r"[@:\d]")
# A telephone number has no check digit, so Presidio is never more certain of it than this.
_LEAST_SCORE = 0.4
_LANGUAGE = "en"  # Presidio wants one; what has a form has it in every language


class Found(NamedTuple):
    """A text with placeholders such as ``<EMAIL_ADDRESS>``, and the kinds that they stand for."""

    text: str
    kinds: tuple[str, ...] = ()


class Find(Protocol):
    """What finds personal data; ``versions`` say what its findings depend on."""

    versions: Mapping[str, str]

    def __call__(self, text: str) -> Found: ...


def require() -> None:
    """Raise ProductError unless the recognisers are installed."""
    if any(importlib.util.find_spec(one.replace("-", "_")) is None for one in PACKAGES):
        raise ProductError(
            "Personal data cannot be looked for here: the recognisers are not installed. Run "
            "pip install 'laurel[pii]' where the web server and the workers run, or take the "
            "snapshot without it."
        )


class Finder:
    """Presidio with the recognisers of what has a form."""

    def __init__(self) -> None:
        require()
        # Presidio brings spaCy, which would bring PyTorch: 300 MB that no worker has use for.
        with _as_if_missing("torch", "transformers"):
            import tldextract
            from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
            from presidio_analyzer import predefined_recognizers as known
            from presidio_analyzer.nlp_engine import NoOpNlpEngine
            from presidio_anonymizer import AnonymizerEngine

        # The list of domains that the package ships; the default asks the network for a newer one.
        domains = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

        class EmailRecognizer(known.EmailRecognizer):
            def validate_result(self, pattern_text: str) -> bool:
                return bool(domains(pattern_text).fqdn)

        # It logs the texts that it cannot make sense of.
        logging.getLogger("presidio-analyzer").setLevel(logging.CRITICAL)
        registry = RecognizerRegistry(
            recognizers=[
                known.CreditCardRecognizer(),
                known.CryptoRecognizer(),
                EmailRecognizer(),
                known.IbanRecognizer(),
                known.IpRecognizer(),
                known.PhoneRecognizer(),
                known.UsSsnRecognizer(),
            ]
        )
        nothing = NoOpNlpEngine(models=[{"lang_code": _LANGUAGE, "model_name": "none"}])
        self._analyzer = AnalyzerEngine(
            registry=registry, nlp_engine=nothing, default_score_threshold=_LEAST_SCORE
        )
        self._anonymizer = AnonymizerEngine()
        self.versions: Mapping[str, str] = {name: version(name) for name in PACKAGES}

    def __call__(self, text: str) -> Found:
        """Return the text without what was found in it."""
        if not _MAYBE.search(text):
            return Found(text)
        spans = self._analyzer.analyze(text, language=_LANGUAGE)
        if not spans:
            return Found(text)
        done = self._anonymizer.anonymize(text, analyzer_results=spans)
        return Found(str(done.text), tuple(sorted(one.entity_type for one in done.items)))


@cache
def finder() -> Finder:
    """Return the one finder of this process."""
    return Finder()


@contextmanager
def _as_if_missing(*names: str) -> Iterator[None]:
    """Have the import of packages fail, those that are not there already."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None bars the import
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
