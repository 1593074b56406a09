"""Simulated annotators: they judge as people do, by a hidden preference, with noise and vices.

Over HTTP (``Annotator``), or many at once without a server (``judge_all``) to try statistics on;
both answer by the same function. No Django in here: a simulated annotator knows the product only
from outside.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from itertools import combinations
from typing import Any

import httpx

from feedback.agreement import Judged, repeats, verdicts
from feedback.scales import Rated

Preference = Callable[[str, str], float]

# Standardised scores closer than this look equal to an annotator.
TIE_WITHIN = 0.05
RETRY_SECONDS = 90.0
NOISE = 0.3
# A noisy annotator ranks two responses rightly five times in six; four, pair by pair, in three of
# four.
NOISY = 1.2
# How often a left-biased annotator takes the leftmost response for the best without looking.
LEFT_PULL = 0.7


class Profile(StrEnum):
    """How a simulated annotator goes about it."""

    HONEST = "honest"
    NOISY = "noisy"
    LEFT_BIASED = "left-biased"
    LAZY = "lazy"
    COLLUDING = "colluding"
    SPAMMING = "spamming"


# Median seconds for a judgement; single ones scatter by half of it either way.
SECONDS = {
    Profile.HONEST: 20.0,
    Profile.NOISY: 14.0,
    Profile.LEFT_BIASED: 10.0,
    Profile.LAZY: 4.0,
    Profile.COLLUDING: 9.0,
    Profile.SPAMMING: 1.5,
}


@dataclass
class Annotator:
    """One simulated person.

    ``noise`` is the scale of the Gumbel noise on standardised scores (Luce's choice model); 0 is
    somebody who never errs. ``most`` is how many they judge at most. ``acknowledged`` collects the
    client ids that the server confirmed.
    """

    name: str
    http: httpx.Client
    campaign: int
    preference: Preference
    noise: float = NOISE
    seed: int = 0
    profile: Profile = Profile.HONEST
    most: int | None = None
    acknowledged: list[str] = field(default_factory=list)
    task_milliseconds: list[float] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)

    def work(self, on_judged: Callable[[], None] = lambda: None) -> int:
        """Judge until nothing is left, or ``most`` are done; return how many were judged."""
        next_path = f"/api/campaigns/{self.campaign}/next"
        task = self._post(next_path)
        while task is not None:
            last = self.most is not None and len(self.acknowledged) + 1 >= self.most
            body = {
                "slot": task["slot"],
                "token": task["token"],
                "client_id": task["client_id"],
                **self.answer(task),
                "next": not last,
            }
            started = time.monotonic()
            stored = self._post("/api/judgements/", body)
            assert stored is not None
            self.task_milliseconds.append((time.monotonic() - started) * 1000)
            self.acknowledged.append(stored["client_id"])
            on_judged()
            task = stored["next"] or (None if last else self._post(next_path))
        return len(self.acknowledged)

    def answer(self, task: dict[str, Any]) -> dict[str, Any]:
        """Return the judgement of a task in the fields of the API.

        Whims depend on the person, the prompt and how often they met it, not on the order in which
        tasks arrive: the same crowd on the same prompts says the same again.
        """
        prompt = task["messages"][-1]["content"]
        self.met[prompt] += 1
        kind = task["kind"]
        if kind == "rating":
            kind = "ranking" if len(task["responses"]) > 1 else "thumbs"
        said = answer(
            kind=kind,
            prompt=prompt,
            shown=[(response["id"], response["text"]) for response in task["responses"]],
            preference=self.preference,
            profile=self.profile,
            noise=self.noise,
            chooser=random.Random(f"{self.seed}:{self.name}:{self.met[prompt]}:{prompt}"),
        )
        said |= beside(said, asked=task["extras"], responses=task["responses"])
        if task["kind"] == "rating":
            said = {key: value for key, value in said.items() if key not in ("ranking", "thumb")}
        return said

    def _post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Post until the server answers; safe, as a task or a client id is the same each time."""
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                response = self.http.post(path, json=body)
                if response.status_code not in (502, 503):
                    break
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} did not answer within {RETRY_SECONDS:.0f} s.")
            time.sleep(0.5)
        if response.status_code == 204:
            return None
        if response.status_code == 409:
            extra = response.json().get("extra", {})
            if extra.get("paused"):
                return None
            if book := extra.get("code_book"):
                self._post(f"/api/code-books/{book}/confirm")
                return self._post(path, body)
        if response.is_error:
            raise RuntimeError(f"{path}: {response.status_code} {response.text[:300]}")
        found: dict[str, Any] = response.json()
        return found


def answer(
    *,
    kind: str,
    prompt: str,
    shown: Sequence[tuple[int, str]],
    preference: Preference,
    profile: Profile,
    noise: float = NOISE,
    chooser: random.Random,
) -> dict[str, Any]:
    """Return what somebody of this profile says of the responses (id, text) from left to right."""
    ids = [response_id for response_id, _ in shown]
    seconds = round(SECONDS[profile] * 2 ** chooser.uniform(-1, 1), 1)
    if profile is Profile.COLLUDING:
        # A shared secret decides: whoever is in it gives the same answer, whatever the texts say.
        scores = [_secret(prompt, text) for _, text in shown]
        noise = 0.0
    else:
        scores = [preference(prompt, text) for _, text in shown]
    if profile is Profile.NOISY:
        noise = max(noise, NOISY)
    if kind == "thumbs":
        if profile is Profile.LAZY:
            return {"thumb": 1, "seconds": seconds}
        if profile is Profile.SPAMMING:
            return {"thumb": chooser.choice((1, -1)), "seconds": seconds}
        return {"thumb": 1 if scores[0] + noise * _gumbel(chooser) > 0 else -1, "seconds": seconds}
    if profile is Profile.LAZY:
        return {"ranking": [[one] for one in ids], "seconds": seconds}
    if profile is Profile.SPAMMING:
        return {"ranking": [[one] for one in chooser.sample(ids, len(ids))], "seconds": seconds}
    ranking = _rank(ids, _felt(_standardised(scores), noise, chooser))
    if profile is Profile.LEFT_BIASED and chooser.random() < LEFT_PULL:
        others = [[one for one in group if one != ids[0]] for group in ranking]
        ranking = [[ids[0]], *(group for group in others if group)]
    return {"ranking": ranking, "seconds": seconds}


def beside(
    said: dict[str, Any], *, asked: dict[str, Any], responses: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return what a judgement needs beside itself: scales follow its order, all else is plain."""
    groups = said.get("ranking") or [[response["id"] for response in responses]]
    steps = max(1, len(groups) - 1)
    merit = {one: 1 - place / steps for place, group in enumerate(groups) for one in group}
    if "thumb" in said:
        merit = dict.fromkeys(merit, 1.0 if said["thumb"] == 1 else 0.0)
    found: dict[str, Any] = {}
    if asked["ratings"]:
        found["ratings"] = {
            one: {
                scale["key"]: 1 + round(value * (scale["levels"] - 1)) for scale in asked["ratings"]
            }
            for one, value in merit.items()
        }
    if asked["safety"]:
        found["safety"] = dict.fromkeys(merit, asked["safety"][0]["key"])
    if asked["rationale"] == "required":
        found["comment"] = "It reads better."
    if asked["correction"] == "required":
        worst = next(each for each in responses if each["id"] == groups[-1][-1])
        found |= {"correction": f"{worst['text']} Indeed.", "corrected": worst["id"]}
    return found


@dataclass(frozen=True, kw_only=True)
class Question:
    """An item of the crowd without a server: a prompt and its responses as (id, text)."""

    prompt: str
    responses: tuple[tuple[int, str], ...]


def questions(
    count: int, *, responses: int, seed: int
) -> tuple[list[Question], Preference, dict[int, float]]:
    """Return items whose texts are their true worth, who prefers by it, and the worth by id."""
    chooser = random.Random(f"{seed}:questions")
    worth = {number: chooser.gauss(0, 1) for number in range(count * responses)}
    items = [
        Question(
            prompt=f"question {index}",
            responses=tuple(
                (number, repr(worth[number]))
                for number in range(index * responses, (index + 1) * responses)
            ),
        )
        for index in range(count)
    ]
    return items, lambda _, text: float(text), worth


def judge_all(
    items: Sequence[Question],
    *,
    crowd: Sequence[Profile],
    preference: Preference,
    overlap: int = 3,
    noise: float = NOISE,
    seed: int = 0,
) -> list[Judged]:
    """Return every item judged by ``overlap`` different people of the crowd, in order; no server.

    People are named ``<number> <profile>`` and get equally many items, to within one. Orders are
    random and balanced within the item, as the product deals them.
    """
    names = [f"{number} {profile}" for number, profile in enumerate(crowd)]
    choosers = [random.Random(f"{seed}:{name}") for name in names]
    dealer = random.Random(f"{seed}:dealer")
    given = [0] * len(crowd)
    judged = []
    for item, question in enumerate(items):
        order = list(question.responses)
        kind = "thumbs" if len(order) == 1 else "ranking"
        free = sorted(range(len(crowd)), key=lambda who: (given[who], dealer.random()))
        for index, who in enumerate(free[:overlap]):
            if index % 2 == 0:
                dealer.shuffle(order)
            else:
                order.reverse()
            given[who] += 1
            said = answer(
                kind=kind,
                prompt=question.prompt,
                shown=order,
                preference=preference,
                profile=crowd[who],
                noise=noise,
                chooser=choosers[who],
            )
            ranking = said.get("ranking")
            judged.append(
                Judged(
                    item,
                    names[who],
                    tuple(response_id for response_id, _ in order),
                    ranking=ranking and tuple(tuple(group) for group in ranking),
                    thumb=said.get("thumb"),
                    seconds=said["seconds"],
                )
            )
    return judged


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a crowd said with gold and repeats among its tasks, as ``trust.assess`` takes it."""

    judged: list[Judged]
    known: dict[Hashable, int]
    again: dict[tuple[str, int], float]


def judge_checked(
    *,
    crowd: Sequence[Profile],
    each: int,
    responses: int,
    overlap: int,
    gold_every: int,
    repeat_every: int = 0,
    repeat_after: int = 20,
    noise: float = NOISE,
    seed: int = 0,
) -> Checked:
    """Return ``each`` tasks of everybody, gold and repeats dealt by lot as by ``feedback.probes``.

    Gold is no clearer than other items. A repeat is an own earlier item with its sides swapped.
    """
    items, preference, worth = questions(
        -(-each * len(crowd) // overlap) + each, responses=responses, seed=seed
    )
    normal, golden = items[:-each], items[-each:]
    alone = judge_all(
        normal, crowd=crowd, preference=preference, overlap=overlap, noise=noise, seed=seed
    )
    shared = judge_all(
        golden, crowd=crowd, preference=preference, overlap=len(crowd), noise=noise, seed=seed + 1
    )
    shared = [replace(one, item=one.item + len(normal)) for one in shared]
    known: dict[Hashable, int] = {
        (one, other): 1 if worth[one] > worth[other] else -1
        for question in golden
        for one, other in combinations(sorted(number for number, _ in question.responses), 2)
    }
    gold, repeat = (1 / every if every else 0.0 for every in (gold_every, repeat_every))
    judged: list[Judged] = []
    likeness: dict[tuple[str, int], float] = {}
    for number, profile in enumerate(crowd):
        name = f"{number} {profile}"
        lot = random.Random(f"{seed}:lot:{name}")
        own = iter([one for one in alone if one.annotator == name])
        golds = iter([one for one in shared if one.annotator == name])
        done: list[Judged] = []
        probed = False
        for place in range(each):
            drawn = 1.0 if probed or not place else lot.random() * (1 - gold - repeat)
            old = [
                one
                for one in done[: max(0, len(done) - repeat_after)]
                if 0 <= one.item < len(normal) and (name, -1 - one.item) not in likeness
            ]
            probed = drawn < gold or (drawn < gold + repeat and bool(old))
            if drawn < gold:
                done.append(next(golds))
            elif probed:
                first = lot.choice(old)
                task = {
                    "prompt": normal[first.item].prompt,
                    "preference": preference,
                    "profile": profile,
                    "noise": noise,
                    "chooser": lot,
                }
                second, alike = _again(first, dict(normal[first.item].responses), **task)
                likeness[name, second.item] = alike
                done.append(second)
            else:
                done.append(next(own))
        judged += done
    return Checked(judged=judged, known=known, again=likeness)


def _again(first: Judged, texts: Mapping[int, str], **task: Any) -> tuple[Judged, float]:
    """Return the judgement of a copy with its sides swapped, and how far it says the same."""
    order = first.shown[::-1]
    said = answer(kind="ranking", shown=[(one, texts[one]) for one in order], **task)
    second = replace(
        first, item=-1 - first.item, shown=order, ranking=tuple(map(tuple, said["ranking"]))
    )
    [alike] = repeats(verdicts([first, second])).values()
    # A copy's responses are its own.
    return replace(
        second,
        shown=tuple(-1 - one for one in order),
        ranking=tuple(tuple(-1 - one for one in group) for group in said["ranking"]),
    ), alike


def rate_all(
    items: Sequence[Question],
    *,
    crowd: Sequence[Profile],
    preference: Preference,
    scales: Mapping[str, int],
    overlap: int = 3,
    noise: float = NOISE,
    seed: int = 0,
) -> list[Rated]:
    """Return every item rated by ``overlap`` different people, in order, as ``judge_all`` does.

    ``preference`` is how many standard deviations a response lies above the average one; the levels
    of each scale are its equal parts (``true_level``).
    """
    names = [f"{number} {profile}" for number, profile in enumerate(crowd)]
    choosers = [random.Random(f"{seed}:{name}") for name in names]
    dealer = random.Random(f"{seed}:dealer")
    given = [0] * len(crowd)
    rated = []
    for item, question in enumerate(items):
        free = sorted(range(len(crowd)), key=lambda who: (given[who], dealer.random()))
        for who in free[:overlap]:
            given[who] += 1
            found: dict[Hashable, dict[str, int]] = {
                str(response): _levels(
                    preference(question.prompt, text),
                    scales=scales,
                    profile=crowd[who],
                    noise=noise,
                    secret=_secret(question.prompt, text),
                    leftmost=place == 0,
                    chooser=choosers[who],
                )
                for place, (response, text) in enumerate(
                    dealer.sample(question.responses, len(question.responses))
                )
            }
            rated.append(Rated(item, names[who], found))
    return rated


def true_level(worth: float, levels: int) -> int:
    """Return the level of a response so many standard deviations above the average one."""
    return 1 + min(levels - 1, int(levels * statistics.NormalDist().cdf(worth)))


def _levels(
    worth: float,
    *,
    scales: Mapping[str, int],
    profile: Profile,
    noise: float,
    secret: float,
    leftmost: bool,
    chooser: random.Random,
) -> dict[str, int]:
    """Return what somebody of this profile gives one response; the lazy always give a 4 of 5."""
    if profile is Profile.LAZY:
        return {key: max(1, levels - 1) for key, levels in scales.items()}
    if profile is Profile.SPAMMING:
        return {key: chooser.randint(1, levels) for key, levels in scales.items()}
    if profile is Profile.COLLUDING:
        return {key: true_level(secret, levels) for key, levels in scales.items()}
    if profile is Profile.LEFT_BIASED and leftmost and chooser.random() < LEFT_PULL:
        return dict(scales)
    spread = max(noise, NOISY) if profile is Profile.NOISY else noise
    return {
        key: true_level(worth + chooser.gauss(0, spread), levels) for key, levels in scales.items()
    }


def _secret(prompt: str, text: str) -> float:
    """Return a number that says nothing about the text, the same for everybody in the secret."""
    digest = sha256(f"{prompt}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**63 - 1


def _gumbel(chooser: random.Random) -> float:
    return -math.log(-math.log(chooser.random() or 1e-12))


def _standardised(scores: Sequence[float]) -> list[float]:
    spread = statistics.pstdev(scores) or 1.0
    mean = statistics.fmean(scores)
    return [(score - mean) / spread for score in scores]


def _felt(scores: Sequence[float], noise: float, chooser: random.Random) -> list[float]:
    """Add noise to each score; what is worth the same feels the same, wherever it is shown."""
    felt = {score: score + noise * _gumbel(chooser) for score in sorted(set(scores))}
    return [felt[score] for score in scores]


def _rank(ids: Sequence[int], felt: Sequence[float]) -> list[list[int]]:
    """Return groups from best to worst; neighbours that feel equal share a group."""
    ordered = sorted(zip(felt, ids, strict=True), reverse=True)
    groups: list[list[int]] = []
    last = float("inf")
    for value, response_id in ordered:
        if groups and last - value < TIE_WITHIN:
            groups[-1].append(response_id)
        else:
            groups.append([response_id])
        last = value
    return groups
