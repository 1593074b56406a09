"""Simulated annotators: they judge over HTTP as people do, by a hidden preference and with noise.

No Django in here: a simulated annotator knows the product only from outside.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

Preference = Callable[[str, str], float]

# Standardised scores closer than this look equal to an annotator.
TIE_WITHIN = 0.05
RETRY_SECONDS = 90.0


@dataclass
class Annotator:
    """One simulated person.

    ``noise`` is the scale of the Gumbel noise on standardised scores (Luce's choice model); 0 is
    somebody who never errs. ``acknowledged`` collects the client ids that the server confirmed.
    """

    name: str
    http: httpx.Client
    campaign: int
    preference: Preference
    noise: float = 0.3
    seed: int = 0
    acknowledged: list[str] = field(default_factory=list)
    task_milliseconds: list[float] = field(default_factory=list)

    def work(self, on_judged: Callable[[], None] = lambda: None) -> int:
        """Judge until nothing is left for this annotator; return how many were judged."""
        chooser = random.Random(f"{self.seed}:{self.name}")
        task = self._post(f"/api/campaigns/{self.campaign}/next")
        while task is not None:
            body = {
                "slot": task["slot"],
                "token": task["token"],
                "client_id": task["client_id"],
                **self.answer(task, chooser),
                "next": True,
            }
            started = time.monotonic()
            stored = self._post("/api/judgements/", body)
            assert stored is not None
            self.task_milliseconds.append((time.monotonic() - started) * 1000)
            self.acknowledged.append(stored["client_id"])
            on_judged()
            task = stored["next"]
        return len(self.acknowledged)

    def answer(self, task: dict[str, Any], chooser: random.Random) -> dict[str, Any]:
        """Return the judgement of a task in the fields of the API."""
        prompt = task["messages"][-1]["content"]
        ids = [response["id"] for response in task["responses"]]
        scores = [self.preference(prompt, response["text"]) for response in task["responses"]]
        if task["kind"] == "thumbs":
            return {"thumb": 1 if scores[0] + self.noise * _gumbel(chooser) > 0 else -1}
        felt = [score + self.noise * _gumbel(chooser) for score in _standardised(scores)]
        return {"ranking": _rank(ids, felt)}

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
        if response.is_error:
            raise RuntimeError(f"{path}: {response.status_code} {response.text[:300]}")
        found: dict[str, Any] = response.json()
        return found


def _gumbel(chooser: random.Random) -> float:
    return -math.log(-math.log(chooser.random() or 1e-12))


def _standardised(scores: Sequence[float]) -> list[float]:
    spread = statistics.pstdev(scores) or 1.0
    mean = statistics.fmean(scores)
    return [(score - mean) / spread for score in scores]


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
