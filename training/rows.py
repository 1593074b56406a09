"""What was said of one prompt's answers, as rows to learn from. Pure functions, no database.

Answers are named by the digests of their texts, so that the same words are the same answer wherever
they come from. Everything said of a prompt is composed at once: votes meet votes on the same two
answers, a thumb up meets a thumb down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import NamedTuple

from training.ledger import GRAVITY, Exclusion
from training.options import Imitate, Kind, Margins, Options, Pairs, Votes
from training.settled import UNSETTLED, Decided, Settled

# Competences are rounded and bounded: nobody is beyond doubt, and the last bits of a floating-point
# sum, which differ between machines, decide nothing.
LEAST_COMPETENCE, MOST_COMPETENCE = 0.05, 0.95
# What is known of somebody whom nobody overlapped with.
UNKNOWN_COMPETENCE = 0.75


class Row(NamedTuple):
    """One row; rows sort by judgement, chosen and rejected answer. "" stands for no answer.

    A rated answer stands as ``chosen``, with its scores by scale and how many people gave them.
    """

    judgements: tuple[str, ...]
    chosen: str
    rejected: str
    margin: float = 1.0
    weight: float = 1.0
    probability: float = 1.0
    ratings: tuple[tuple[str, float], ...] = ()
    annotators: int = 1


@dataclass(slots=True)
class Said:
    """One judgement, or one feedback on an answer in use; answers are named by digest."""

    id: str
    annotator: str = ""
    exclusion: Exclusion | None = None  # known before the content is looked at
    # Groups of answers from best to worst.
    ranking: Sequence[Sequence[str]] | None = None
    both_bad: bool = False
    margin: float = 1.0
    thumb: int | None = None
    # The answer that the thumb or the correction is about.
    answer: str = ""
    correction: str = ""
    # Scores by answer and attribute.
    ratings: Mapping[str, Mapping[str, float]] | None = None


@dataclass(slots=True)
class Vote:
    """One voice for one of two answers."""

    id: str
    annotator: str
    chosen: str
    rejected: str
    margin: float


@dataclass(slots=True)
class Flips:
    """How often two annotators said the opposite of the same two answers."""

    compared: int = 0
    opposed: int = 0

    def add(self, ayes: int, noes: int) -> None:
        together = ayes + noes
        self.compared += together * (together - 1) // 2
        self.opposed += ayes * noes

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the counts and the label smoothing that they suggest.

        Where each label is flipped with chance e, independently, two of them differ with chance
        d = 2 e (1 - e), so e = (1 - sqrt(1 - 2 d)) / 2, at most a half.
        """
        share = self.opposed / self.compared if self.compared else None
        smoothing = None if share is None else (1 - math.sqrt(max(0.0, 1 - 2 * share))) / 2
        return {
            "compared": self.compared,
            "opposed": self.opposed,
            "label_smoothing": None if smoothing is None else round(smoothing, 4),
        }


@dataclass(slots=True)
class Composed:
    """One prompt's rows, and why the judgements without one have none."""

    rows: list[Row] = field(default_factory=list)
    reasons: dict[str, Exclusion] = field(default_factory=dict)

    def left_out(self, judgement: str, reason: Exclusion) -> None:
        """Name a reason; the gravest one stays."""
        before = self.reasons.get(judgement)
        if before is None or GRAVITY[reason] < GRAVITY[before]:
            self.reasons[judgement] = reason

    def withhold(self, reason: Exclusion, fits: Callable[[Row], bool] = lambda _: False) -> None:
        """Give up the rows that do not fit, or all, for one reason; whose others stay have none."""
        for row in self.rows:
            for judgement in row.judgements:
                self.reasons[judgement] = reason
        self.rows = [row for row in self.rows if fits(row)]
        for row in self.rows:
            for judgement in row.judgements:
                self.reasons.pop(judgement, None)

    def finish(self) -> Composed:
        """Order the rows, and forget the reasons of whoever has a row after all."""
        self.rows.sort()
        for row in self.rows:
            for judgement in row.judgements:
                self.reasons.pop(judgement, None)
        return self


class Composer:
    """Turns what was said of a prompt into rows of one kind.

    ``competence`` is each annotator's chance to be right, for weighted votes.
    """

    def __init__(
        self, kind: Kind, options: Options, competence: Mapping[str, float] | None = None
    ) -> None:
        self.kind = kind
        self.options = options
        self.competence = competence or {}
        self.flips = Flips()

    def compose(self, said: Iterable[Said], decided: Sequence[Decided] = ()) -> Composed:
        """Return the rows of one prompt in canonical order.

        Where votes are counted, what leads decided stands in place of the count. A decision needs
        something said: a row names the judgements that agree with it, or all where none does.
        """
        counted = self.options.votes != Votes.INDIVIDUAL
        settled = Settled(decided) if decided and counted else UNSETTLED
        composed = Composed()
        sound: list[Said] = []
        for one in said:
            if one.exclusion is None:
                sound.append(one)
            else:
                composed.left_out(one.id, one.exclusion)
        if self.kind == Kind.PREFERENCE:
            self._preferences(sound, composed, settled)
        elif self.kind == Kind.UNPAIRED:
            self._unpaired(sound, composed, settled)
        elif self.kind == Kind.SFT:
            self._imitated(sound, composed)
        else:
            self._rated(sound, composed, settled)
        return composed.finish()

    # Pairs

    def _preferences(self, said: list[Said], composed: Composed, settled: Settled) -> None:
        if self.options.votes == Votes.INDIVIDUAL and not self.options.min_agreement:
            self._all_pairs(said, composed)
        else:
            self._voted_pairs(said, composed, settled)
        thumbs = [one for one in said if one.thumb is not None and not one.correction]
        if thumbs:
            _pair_thumbs(thumbs, composed, settled)

    def _all_pairs(self, said: list[Said], composed: Composed) -> None:
        """Take every pair of every judgement: the common case, which must be quick."""
        tally: dict[tuple[str, str], int] = {}
        for one in said:
            found = self._statements(one)
            names, leads = (one.id,), self._leads(one)
            for pair in found:
                margin = leads.get(pair, one.margin) if leads else one.margin
                composed.rows.append(Row(names, pair[0], pair[1], margin))
                tally[pair] = tally.get(pair, 0) + 1
            if not found and (one.thumb is None or one.correction):
                composed.left_out(one.id, why_no_pair(one, self.options))
        if len(said) > 1:
            for (chosen, rejected), ayes in tally.items():
                noes = tally.get((rejected, chosen), 0)
                if (noes or ayes > 1) and (not noes or chosen < rejected):
                    self.flips.add(ayes, noes)

    def _voted_pairs(self, said: list[Said], composed: Composed, settled: Settled) -> None:
        votes: dict[tuple[str, str], list[Vote]] = {}
        for one in said:
            found, leads = self._statements(one), self._leads(one)
            for chosen, rejected in found:
                key = (chosen, rejected) if chosen < rejected else (rejected, chosen)
                margin = leads.get((chosen, rejected), one.margin)
                vote = Vote(one.id, one.annotator, chosen, rejected, margin)
                votes.setdefault(key, []).append(vote)
            if not found and (one.thumb is None or one.correction):
                composed.left_out(one.id, why_no_pair(one, self.options))
        for cast in votes.values():
            self._decide(cast, composed, settled)

    def _statements(self, one: Said) -> list[tuple[str, str]]:
        """Return the (chosen, rejected) answers that a judgement names, each once."""
        found: list[tuple[str, str]] = []
        if one.ratings is not None and self.options.attributes:
            # Whoever asks for attributes wants their order where there is one.
            found = list(rated_pairs(one.ratings, self.options.attributes, gap=self.options.gap))
        elif one.ranking is not None and not one.both_bad:
            found = pairs_of(one.ranking, adjacent=self.options.pairs == Pairs.ADJACENT)
        if one.correction and one.answer and one.correction != one.answer:
            found.append((one.correction, one.answer))
        return found if len(found) < 2 else list(dict.fromkeys(found))

    def _leads(self, one: Said) -> dict[tuple[str, str], float]:
        """Return the leads of the pairs that ratings order, where leads are margins."""
        if self.options.margins != Margins.LEAD or one.ratings is None:
            return {}
        return rated_pairs(one.ratings, self.options.attributes, gap=self.options.gap)

    def _decide(self, cast: list[Vote], composed: Composed, settled: Settled) -> None:
        """Turn the votes on two answers into rows by the rule that was chosen."""
        first = cast[0]
        ayes = [vote for vote in cast if vote.chosen == first.chosen]
        if len(cast) > 1:
            self.flips.add(len(ayes), len(cast) - len(ayes))
        noes = (
            [vote for vote in cast if vote.chosen != first.chosen] if len(ayes) < len(cast) else []
        )
        options = self.options
        if options.votes == Votes.INDIVIDUAL:
            for side in (ayes, noes):
                low = len(side) < options.min_agreement * len(cast)
                for vote in side:
                    if low:
                        composed.left_out(vote.id, Exclusion.BELOW_AGREEMENT)
                    else:
                        composed.rows.append(
                            Row((vote.id,), vote.chosen, vote.rejected, vote.margin)
                        )
            return
        decided = self._settled(settled, first.chosen, first.rejected)
        if decided is not None:
            _obey(*decided, cast, composed)
            return
        if options.votes == Votes.WEIGHTED:
            odds = math.fsum(self._log_odds(vote.annotator) for vote in ayes) - math.fsum(
                self._log_odds(vote.annotator) for vote in noes
            )
            share = round(1 / (1 + math.exp(-odds)), 4)
        else:
            share = len(ayes) / len(cast)
        if share == 0.5:
            for vote in cast:
                composed.left_out(vote.id, Exclusion.NO_MAJORITY)
            return
        winners, losers = (ayes, noes) if share > 0.5 else (noes, ayes)
        agreement = round(max(share, 1 - share), 4)
        if agreement < options.min_agreement:
            for vote in cast:
                composed.left_out(vote.id, Exclusion.BELOW_AGREEMENT)
            return
        soft = options.votes == Votes.WEIGHTED
        for vote in losers if not soft else ():
            composed.left_out(vote.id, Exclusion.OUTVOTED)
        # Even a weighted verdict can go against every voice: two below chance say the opposite.
        margins = [vote.margin for vote in winners] or [1.0]
        chosen, rejected = first.chosen, first.rejected
        if share < 0.5:
            chosen, rejected = rejected, chosen
        composed.rows.append(
            Row(
                tuple(sorted({vote.id for vote in (cast if soft else winners)})),
                chosen,
                rejected,
                round(sum(margins) / len(margins), 4),
                1.0,
                agreement if soft else 1.0,
            )
        )

    def _settled(self, settled: Settled, one: str, other: str) -> tuple[str, float | None] | None:
        """Return the better of two answers as leads decided their order or levels, and by how much.

        "" for a tie; None for a lead that was not decided or is not asked for, or for both.
        """
        better = settled.better(one, other)
        weights = self.options.attributes
        if better is not None:
            return better, None
        if not weights:
            return None
        levels = {answer: settled.levels(answer) for answer in (one, other)}
        if not all(scores.keys() >= weights.keys() for scores in levels.values()):
            return None
        by_lead = self.options.margins == Margins.LEAD
        for (chosen, _), lead in rated_pairs(levels, weights, gap=self.options.gap).items():
            return chosen, lead if by_lead else None
        return "", None

    def _competence_of(self, annotator: str) -> float:
        right = round(self.competence.get(annotator, UNKNOWN_COMPETENCE), 2)
        return min(MOST_COMPETENCE, max(LEAST_COMPETENCE, right))

    def _log_odds(self, annotator: str) -> float:
        right = self._competence_of(annotator)
        return math.log(right / (1 - right))

    # Single answers

    def _unpaired(self, said: list[Said], composed: Composed, settled: Settled) -> None:
        good: dict[str, list[str]] = {}
        bad: dict[str, list[str]] = {}
        for one in said:
            if one.correction:
                good.setdefault(one.correction, []).append(one.id)
                if one.answer and one.answer != one.correction:
                    # Good, though it could be better, or not good.
                    side = good if (one.thumb or 0) > 0 else bad
                    side.setdefault(one.answer, []).append(one.id)
            elif one.thumb is not None:
                (good if one.thumb > 0 else bad).setdefault(one.answer, []).append(one.id)
            else:
                composed.left_out(one.id, why_not_single(one))
        for answer in good.keys() | bad.keys():
            ups, downs = good.get(answer, []), bad.get(answer, [])
            if ups and downs:
                self.flips.add(len(ups), len(downs))
            elif len(ups) + len(downs) > 1:
                self.flips.add(len(ups) + len(downs), 0)
            self._call(answer, ups, downs, composed, settled.thumb(answer))

    def _call(
        self, answer: str, ups: list[str], downs: list[str], composed: Composed, thumb: int
    ) -> None:
        """Turn the votes on one answer into rows that call it good or bad.

        ``thumb`` is what a lead decided of it, 0 where nobody did.
        """
        votes = len(ups) + len(downs)
        if self.options.votes == Votes.INDIVIDUAL:
            for side in (ups, downs):
                low = len(side) < self.options.min_agreement * votes
                for judgement in side:
                    if low:
                        composed.left_out(judgement, Exclusion.BELOW_AGREEMENT)
                    else:
                        composed.rows.append(
                            Row((judgement,), answer, "") if side is ups
                            else Row((judgement,), "", answer)
                        )  # fmt: skip
            return
        if thumb:
            agreed, others = (ups, downs) if thumb > 0 else (downs, ups)
            for judgement in others if agreed else ():
                composed.left_out(judgement, Exclusion.OVERRULED)
            names = tuple(sorted(set(agreed or others)))
            composed.rows.append(Row(names, *((answer, "") if thumb > 0 else ("", answer))))
            return
        winners, losers = (ups, downs) if len(ups) > len(downs) else (downs, ups)
        share = len(winners) / votes
        for judgement in losers if share > 0.5 else ups + downs:
            reason = Exclusion.OUTVOTED if share > 0.5 else Exclusion.NO_MAJORITY
            composed.left_out(judgement, reason)
        if share == 0.5:
            return
        if share < self.options.min_agreement:
            for judgement in winners:
                composed.left_out(judgement, Exclusion.BELOW_AGREEMENT)
            return
        # A label that half of the votes contradict weighs nothing, an undisputed one 1.
        weight = round(2 * share - 1, 4) if self.options.votes == Votes.WEIGHTED else 1.0
        names = tuple(sorted(set(winners)))
        sides = (answer, "") if winners is ups else ("", answer)
        composed.rows.append(Row(names, *sides, weight=weight))

    def _imitated(self, said: list[Said], composed: Composed) -> None:
        wanted = self.options.imitate
        for one in said:
            found: list[str] = []
            if one.correction:
                if Imitate.CORRECTIONS in wanted:
                    found.append(one.correction)
            elif (one.thumb or 0) > 0 and Imitate.THUMBS in wanted:
                found.append(one.answer)
            ranked = one.ranking is not None and len(one.ranking) > 1 and not one.both_bad
            if ranked and one.ranking and Imitate.BEST in wanted:
                found.extend(one.ranking[0])
            if found:
                composed.rows.extend(Row((one.id,), answer, "") for answer in dict.fromkeys(found))
            else:
                composed.left_out(one.id, why_not_imitated(one))

    # Ratings

    def _rated(self, said: list[Said], composed: Composed, settled: Settled) -> None:
        """Keep each judgement's scores of an answer, or their mean where votes are counted.

        A level that a lead decided stands in place of the mean. Whoever gave another level on every
        scale is overruled, unless everybody did.
        """
        of_answer: dict[str, list[tuple[Said, Mapping[str, float]]]] = {}
        for one in said:
            found = {answer: scores for answer, scores in (one.ratings or {}).items() if scores}
            for answer, scores in found.items():
                of_answer.setdefault(answer, []).append((one, scores))
            if not found:
                composed.left_out(one.id, Exclusion.NO_RATING)
        for answer, rated in of_answer.items():
            if self.options.votes == Votes.INDIVIDUAL:
                for one, scores in rated:
                    ratings = tuple(sorted((name, float(level)) for name, level in scores.items()))
                    composed.rows.append(Row((one.id,), answer, "", ratings=ratings))
                continue
            decided = settled.levels(answer)
            behind = [
                (one, scores)
                for one, scores in rated
                if any(decided.get(name, level) == level for name, level in scores.items())
            ] or rated
            names = {one.id for one, _ in behind}
            for one, _ in rated:
                if one.id not in names:
                    composed.left_out(one.id, Exclusion.OVERRULED)
            means = dict(self._means(behind))
            means |= {name: float(level) for name, level in decided.items()}
            composed.rows.append(
                Row(
                    tuple(sorted(names)),
                    answer,
                    "",
                    ratings=tuple(sorted(means.items())),
                    annotators=len({one.annotator for one, _ in behind}),
                )
            )

    def _means(
        self, rated: Sequence[tuple[Said, Mapping[str, float]]]
    ) -> tuple[tuple[str, float], ...]:
        """Return each scale's mean; by competence, a score counts as often as its giver is right.

        Exact sums, so that the order in which they came is of no account.
        """
        weighted = self.options.votes == Votes.WEIGHTED
        found: dict[str, list[tuple[float, float]]] = {}
        for one, scores in rated:
            weight = self._competence_of(one.annotator) if weighted else 1.0
            for name, level in scores.items():
                found.setdefault(name, []).append((weight, weight * level))
        return tuple(
            (name, round(math.fsum(level for _, level in of) / math.fsum(w for w, _ in of), 4))
            for name, of in sorted(found.items())
        )


def pairs_of(ranking: Sequence[Sequence[str]], *, adjacent: bool = False) -> list[tuple[str, str]]:
    """Return the (chosen, rejected) answers of a ranking, each pair once.

    Every answer of a better group beats every one of a worse group, or of the next group alone. The
    same text in two groups says nothing of itself, and two texts that beat each other are no pair.
    """
    groups = pairwise(ranking) if adjacent else combinations(ranking, 2)
    found = [
        (chosen, rejected) for better, worse in groups for chosen in better for rejected in worse
    ]
    answers = [answer for group in ranking for answer in group]
    if len(set(answers)) == len(answers):
        return found
    said = dict.fromkeys(found)
    return [(one, other) for one, other in said if one != other and (other, one) not in said]


def rated_pairs(
    ratings: Mapping[str, Mapping[str, float]], weights: Mapping[str, float], *, gap: float
) -> dict[tuple[str, str], float]:
    """Return the leads of the pairs whose weighted sums differ by at least ``gap`` and above 0.

    An answer that lacks one of the attributes is in no pair.
    """
    sums = {
        answer: math.fsum(weight * scores[name] for name, weight in weights.items())
        for answer, scores in ratings.items()
        if all(scores.get(name) is not None for name in weights)
    }
    found = {}
    for one, other in combinations(sorted(sums), 2):
        lead = sums[one] - sums[other]
        if lead != 0 and abs(lead) >= gap:
            found[(one, other) if lead > 0 else (other, one)] = round(abs(lead), 4)
    return found


def _obey(better: str, lead: float | None, cast: list[Vote], composed: Composed) -> None:
    """Turn the votes on two answers into the row that a lead's decision asks for; "" is a tie.

    ``lead`` is the margin where it was decided, too; else it is what those who agree said.
    """
    agreed = [vote for vote in cast if vote.chosen == better]
    if agreed or not better:
        for vote in cast:
            if vote.chosen != better:
                composed.left_out(vote.id, Exclusion.OVERRULED)
    if not better:
        return
    worse = cast[0].rejected if cast[0].chosen == better else cast[0].chosen
    names = tuple(sorted({vote.id for vote in agreed or cast}))
    margins = [vote.margin for vote in agreed] or [1.0]
    margin = round(sum(margins) / len(margins), 4) if lead is None else lead
    composed.rows.append(Row(names, better, worse, margin))


def _pair_thumbs(said: list[Said], composed: Composed, settled: Settled) -> None:
    """Pair a prompt's answers with thumbs up with those with thumbs down, each at least once.

    As many pairs as there are answers on the larger side, not their product: what is often asked in
    use has thousands. A thumb that most contradict, or as many, is outvoted, unless a lead decided.
    """
    balance: dict[str, int] = {}
    for one in said:
        balance[one.answer] = balance.get(one.answer, 0) + (one.thumb or 0)
    decided = {answer: thumb for answer in balance if (thumb := settled.thumb(answer))}
    balance |= decided
    backed = {one.answer for one in said if decided.get(one.answer) == one.thumb}
    voices: dict[str, list[str]] = {}
    for one in said:
        alone = one.answer in decided and one.answer not in backed
        if alone or balance[one.answer] * (one.thumb or 0) > 0:
            voices.setdefault(one.answer, []).append(one.id)
        else:
            overruled = one.answer in decided
            composed.left_out(one.id, Exclusion.OVERRULED if overruled else Exclusion.OUTVOTED)
    ups = sorted(answer for answer in voices if balance[answer] > 0)
    downs = sorted(answer for answer in voices if balance[answer] < 0)
    if not ups or not downs:
        for names in voices.values():
            for judgement in names:
                composed.left_out(judgement, Exclusion.THUMB)
        return
    for number in range(max(len(ups), len(downs))):
        chosen, rejected = ups[number % len(ups)], downs[number % len(downs)]
        both = tuple(sorted({*voices[chosen], *voices[rejected]}))
        composed.rows.append(Row(both, chosen, rejected))


def why_no_pair(one: Said, options: Options) -> Exclusion:
    """Return why a judgement without a pair has none."""
    if one.ratings is not None and options.attributes:
        wanted = options.attributes.keys()
        whole = [scores for scores in one.ratings.values() if scores.keys() >= wanted]
        return Exclusion.TIE if len(whole) > 1 else Exclusion.RATING
    if one.both_bad:
        return Exclusion.BOTH_BAD
    if one.ranking is not None:
        return Exclusion.TIE if len(one.ranking) < 2 else Exclusion.EQUAL_TEXTS
    if one.correction:
        return Exclusion.EQUAL_TEXTS
    return Exclusion.RATING if one.ratings is not None else Exclusion.NO_VERDICT


def why_not_single(one: Said) -> Exclusion:
    """Return why a judgement calls no single answer good or bad."""
    if one.ranking is not None:
        return Exclusion.BOTH_BAD if one.both_bad else Exclusion.RANKING
    return Exclusion.RATING if one.ratings is not None else Exclusion.NO_VERDICT


def why_not_imitated(one: Said) -> Exclusion:
    """Return why a judgement names no answer to imitate."""
    if one.thumb is not None and not one.correction:
        return Exclusion.THUMB if one.thumb > 0 else Exclusion.THUMB_DOWN
    if one.correction:
        return Exclusion.CORRECTION
    if one.ranking is not None and len(one.ranking) < 2 and not one.both_bad:
        return Exclusion.TIE
    return why_not_single(one)


def margin_of(strength: int | None) -> float:
    """Return how much better the chosen one is: the strength that was given, or 1."""
    return float(strength or 1)
