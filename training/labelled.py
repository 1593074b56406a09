"""How close answers come to the reference texts of labelled tasks.

Standard definitions from scikit-learn and sacreBLEU (Post 2018, arXiv 1804.08771).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

# References that look like labels: few different ones, a few words each.
MAX_LABELS = 20
MAX_LABEL_WORDS = 4
NO_LABEL = "(another answer)"


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """How well one label is told from the others."""

    label: str
    precision: float
    recall: float
    f1: float
    expected: int  # how often it was right


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Scores of predicted labels; precision, recall and F1 are means over labels (macro)."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    by_label: tuple[LabelScores, ...]
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]  # row: expected, column: predicted


def normalise(text: str) -> str:
    """Return a label as it is compared: lower case, without surrounding space and full stops."""
    return text.strip().strip(".!\"' ").lower()


def are_labels(references: Sequence[str]) -> bool:
    """Say whether the references are the labels of a classification."""
    different = {normalise(one) for one in references}
    short = all(len(one.split()) <= MAX_LABEL_WORDS for one in different)
    return 2 <= len(different) <= MAX_LABELS and len(different) < len(references) and short


def classification(expected: Sequence[str], predicted: Sequence[str]) -> Classification:
    """Compare labels; an answer that is no known label counts as a label of its own."""
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    true = [normalise(one) for one in expected]
    known = sorted(set(true))
    found = [one if one in known else NO_LABEL for one in map(normalise, predicted)]
    labels = [*known, NO_LABEL] if NO_LABEL in found else known
    by_label = [
        LabelScores(
            label=label,
            precision=float(precision),
            recall=float(recall),
            f1=float(f1),
            expected=int(expected),
        )
        for label, precision, recall, f1, expected in zip(
            known,
            *precision_recall_fscore_support(true, found, labels=known, zero_division=0.0),
            strict=True,
        )
    ]
    matrix = confusion_matrix(true, found, labels=labels)
    return Classification(
        accuracy=float(accuracy_score(true, found)),
        precision=fmean(one.precision for one in by_label),
        recall=fmean(one.recall for one in by_label),
        f1=fmean(one.f1 for one in by_label),
        by_label=tuple(by_label),
        labels=tuple(labels),
        confusion=tuple(tuple(int(one) for one in row) for row in matrix),
    )


def bleu(references: Sequence[str], answers: Sequence[str]) -> float:
    """Return the corpus BLEU (0 to 100) of answers against one reference each."""
    from sacrebleu.metrics.bleu import BLEU

    metric: Any = BLEU(effective_order=True)
    return float(metric.corpus_score(list(answers), [list(references)]).score)


def scores(references: Sequence[str], answers: Sequence[str]) -> dict[str, Any]:
    """Return BLEU and, where the references are labels, their classification, as JSON keeps it."""
    found: dict[str, Any] = {"bleu": bleu(references, answers)}
    if are_labels(references):
        found["classification"] = asdict(classification(references, answers))
    return found
