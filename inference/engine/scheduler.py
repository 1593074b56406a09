"""Continuous batching: one thread that steps every running text together.

Texts join and leave between steps. A step 1. drops what was cancelled, 2. reads a bounded piece
of waiting prompts, 3. writes one token of every running text.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from inference.engine.errors import Refusal
from inference.engine.lora import Adapter
from inference.engine.metrics import Metrics
from inference.engine.runtime import Runtime
from inference.engine.sampling import Sampling, choose
from inference.engine.text import Detokenizer, StopStrings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenScore:
    """A token's natural log-probability and those of the likeliest tokens in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """New text of one sample; `reason` is set on its last piece ("stop" or "length")."""

    sample: int
    text: str
    tokens: int
    reason: str | None = None
    score: TokenScore | None = None


@dataclass(frozen=True)
class Failure:
    """The request ended without a result."""

    refusal: Refusal


@dataclass(eq=False)
class Job:
    """One request. `emit` is called from the engine's thread and must not block."""

    prompt: list[int]
    sampling: Sampling
    adapter: Adapter | None
    emit: Callable[[Piece | Failure], None]
    born: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    released: bool = False
    unfinished: int = 0

    def __post_init__(self) -> None:
        self.unfinished = self.sampling.n


@dataclass
class Reading:
    """The prompt in the scratch row: `done` tokens read, `placed` samples begun."""

    job: Job
    done: int = 0
    placed: int = 0
    logits: Tensor | None = None


@dataclass
class Row:
    """One running text. `token` is the newest, to be fed at `position`."""

    job: Job
    sample: int
    generator: np.random.Generator
    detokenizer: Detokenizer
    stops: StopStrings
    position: int
    token: int = -1
    written: int = 0


class Scheduler:
    """Own the running rows and the bounded queue in front of them."""

    def __init__(
        self,
        runtime: Runtime,
        metrics: Metrics,
        torch_thread: Executor,
        *,
        rows: int,
        queue: int,
        chunk: int,
    ) -> None:
        self.runtime = runtime
        self.metrics = metrics
        self.rows = rows
        self.queue = queue
        self.chunk = chunk
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._reading: Reading | None = None
        self._running: list[Row] = []
        self._seconds_per_text = 1.0
        self._refusing: Refusal | None = None
        self._stopped = False
        self._torch_thread = torch_thread
        self._stepping: Future[None] | None = None

    # Called from the server's threads.

    def start(self) -> None:
        """Start stepping."""
        self._stepping = self._torch_thread.submit(self._loop)

    def submit(self, job: Job) -> None:
        """Queue a job, whose adapter is already acquired; Refusal when there is no room."""
        with self._changed:
            if self._refusing:
                raise self._refusing
            waiting = self._waiting_samples()
            # An idle engine takes any number of samples: refusing them would help nobody.
            if waiting and waiting + job.sampling.n > self.queue:
                self.metrics.refused.inc()
                raise Refusal(
                    f"{waiting} texts are waiting already: try again after the given seconds.",
                    status=429,
                    code="overloaded",
                )
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Give a job up; its rows are free at the next step."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._release(job)
            self._changed.notify()

    def retry_after(self) -> int:
        """Estimate, in whole seconds, when the queue will have moved on."""
        seconds = self._waiting_samples() * self._seconds_per_text / self.rows
        return min(60, max(1, math.ceil(seconds)))

    def drain(self) -> None:
        """Refuse new jobs; those in flight go on."""
        with self._changed:
            self._refusing = Refusal(
                "The engine is stopping: try again in a moment.", status=503, code="stopping"
            )

    def stop(self) -> None:
        """End the thread; whatever is left fails."""
        self.drain()
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._stepping:
            self._stepping.result()

    @property
    def alive(self) -> bool:
        """Whether the engine still steps."""
        return self._stepping is not None and not self._stepping.done()

    def _waiting_samples(self) -> int:
        reading = self._reading
        begun = reading.job.sampling.n - reading.placed if reading else 0
        return begun + sum(job.sampling.n for job in self._waiting)

    # Called from the engine's thread only.

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopped or self._waiting or self._reading or self._running
                )
                if self._stopped:
                    break
            started = time.monotonic()
            try:
                self._drop_cancelled()
                self._read_prompts()
                self._write()
            except Exception as error:
                log.exception("A step failed; its requests end, the engine goes on.")
                self._fail_everything(f"The engine failed: {error}", in_flight_only=True)
            self.metrics.step.observe(time.monotonic() - started)
            self._show_load()
        self._fail_everything("The engine is stopping: try again in a moment.")

    def _drop_cancelled(self) -> None:
        for number in reversed(range(len(self._running))):
            if self._running[number].job.cancelled:
                self._remove(number)
        if self._reading and self._reading.job.cancelled:
            self._release(self._reading.job)
            self._reading = None

    def _read_prompts(self) -> None:
        """Read prompts into free rows, about one chunk a step, so that running texts flow on."""
        budget = self.chunk
        while budget > 0 and len(self._running) < self.rows:
            if self._reading is None:
                with self._changed:
                    if not self._waiting:
                        return
                    self._reading = Reading(self._waiting.popleft())
            reading = self._reading
            job = reading.job
            if reading.logits is None:
                part = job.prompt[reading.done : reading.done + self.chunk]
                logits = self.runtime.read(part, reading.done, job.adapter)
                reading.done += len(part)
                budget -= len(part)
                self.metrics.prompt_tokens.inc(len(part))
                if reading.done < len(job.prompt):
                    continue
                reading.logits = logits
            self._place(reading)
            if reading.placed == job.sampling.n:
                self._reading = None

    def _place(self, reading: Reading) -> None:
        """Begin as many samples of a read prompt as there are free rows."""
        job = reading.job
        assert reading.logits is not None
        first = len(self._running)
        count = min(self.rows - first, job.sampling.n - reading.placed)
        for sample in range(reading.placed, reading.placed + count):
            self.runtime.cache.copy(self.runtime.cache.scratch, len(self._running), len(job.prompt))
            self._running.append(
                Row(
                    job,
                    sample,
                    job.sampling.generator(sample),
                    Detokenizer(self.runtime.tokenizer),
                    StopStrings(job.sampling.stop),
                    position=len(job.prompt) - 1,
                )
            )
        reading.placed += count
        self.metrics.first_token.observe(time.monotonic() - job.born)
        self._accept(first, reading.logits.expand(count, -1))

    def _write(self) -> None:
        if not self._running:
            return
        logits = self.runtime.step(
            [row.token for row in self._running],
            [row.position for row in self._running],
            [row.job.adapter for row in self._running],
        )
        self._accept(0, logits)

    def _accept(self, first: int, logits: Tensor) -> None:
        """Draw a token for the rows from `first` on, show its text, remove what is finished."""
        rows = self._running[first : first + len(logits)]
        sound = logits.amax(dim=-1).isfinite().tolist()
        tokens = choose(logits, [row.job.sampling for row in rows], [row.generator for row in rows])
        self.metrics.generated_tokens.inc(len(rows))
        for number in reversed(range(len(rows))):
            row, token = rows[number], tokens[number]
            if not sound[number]:
                refusal = Refusal("The model lost its numbers (not finite).", status=500)
                self._fail(row.job, refusal)
                self._remove(first + number, wipe=True)
                continue
            row.token = token
            row.position += 1
            row.written += 1
            score = _score(logits[number], token, row.job.sampling.top_logprobs)
            text, reason = self._text_of(row)
            if text or reason or score:
                row.job.emit(Piece(row.sample, text, row.written, reason, score))
            if reason:
                self._finished(row)
                self._remove(first + number)

    def _text_of(self, row: Row) -> tuple[str, str | None]:
        """Return the text that the row's newest token lets out, and why it ends, if it does."""
        sampling = row.job.sampling
        if row.token in self.runtime.end_tokens and not sampling.ignore_eos:
            text, reason = row.detokenizer.finish(), "stop"
        else:
            text = row.detokenizer.add(row.token)
            # A token at the last position could be fed, but nothing could follow it.
            full = row.written >= sampling.max_tokens or row.position >= self.runtime.context
            reason = "length" if full else ""
            if full:
                text += row.detokenizer.finish()
        shown, stopped = row.stops.add(text)
        if stopped:
            return shown, "stop"
        if reason:
            shown += row.stops.finish()
        return shown, reason or None

    def _finished(self, row: Row) -> None:
        seconds = time.monotonic() - row.job.born
        self.metrics.whole_text.observe(seconds)
        self._seconds_per_text += 0.1 * (seconds - self._seconds_per_text)

    def _remove(self, number: int, *, wipe: bool = False) -> None:
        """Take a row out and move the last one into its place, so that rows stay packed."""
        row, last = self._running[number], len(self._running) - 1
        if wipe:
            # Masked positions still multiply by zero, and 0 * nan is nan.
            self.runtime.cache.clear(number)
        if number != last:
            moved = self._running[last]
            self.runtime.cache.copy(last, number, moved.position)
            self._running[number] = moved
        self._running.pop()
        row.job.unfinished -= 1
        if row.job.unfinished == 0 or row.job.cancelled:
            self._release(row.job)

    def _fail(self, job: Job, refusal: Refusal) -> None:
        if not job.cancelled:
            self.metrics.failed.inc()
            job.cancelled = True
            job.emit(Failure(refusal))

    def _fail_everything(self, message: str, *, in_flight_only: bool = False) -> None:
        jobs = {row.job for row in self._running}
        if self._reading:
            jobs.add(self._reading.job)
        if not in_flight_only:
            with self._changed:
                jobs.update(self._waiting)
                self._waiting.clear()
        self._running, self._reading = [], None
        status, code = (500, "engine_failed") if in_flight_only else (503, "stopping")
        for job in jobs:
            self._fail(job, Refusal(message, status=status, code=code))
            self._release(job)
        self.runtime.cache.clear()

    def _release(self, job: Job) -> None:
        if not job.released:
            job.released = True
            if job.adapter:
                self.runtime.bank.release(job.adapter)

    def _show_load(self) -> None:
        self.metrics.running.set(len(self._running))
        with self._changed:
            self.metrics.waiting.set(self._waiting_samples())


def _score(logits: Tensor, token: int, top: int | None) -> TokenScore | None:
    """Return the log-probabilities of a token and of the `top` likeliest; None if unasked."""
    if top is None:
        return None
    scores = logits.log_softmax(dim=-1)
    likeliest = scores.topk(top)
    pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return TokenScore(token, float(scores[token]), tuple(pairs))
