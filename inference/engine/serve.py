"""Run the model server as a process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from inference.engine.errors import Refusal
from inference.engine.metrics import Metrics
from inference.engine.runtime import Runtime
from inference.engine.scheduler import Scheduler
from inference.engine.server import Server


@dataclass(frozen=True)
class ServeOptions:
    """How to serve one base."""

    model: Path
    served_name: str
    api_key: str
    host: str = "127.0.0.1"
    port: int = 8101
    dtype: str = "auto"
    """auto, bfloat16 or float32; auto takes bfloat16 where the hardware multiplies it."""
    rows: int = 16
    """Texts written together; each holds the keys and values of one context."""
    queue: int = 64
    """Texts that may wait before the answer is 429."""
    context: int | None = None
    """Longest text in tokens; the default is the model's own, at most 4096."""
    prefill_chunk: int = 256
    """Prompt tokens read between two steps: more reads faster, less keeps streams smooth."""
    max_adapters: int = 32
    threads: int | None = None
    """CPU threads; the default leaves one core to the rest of the host."""
    drain_seconds: int = 5
    """How long SIGTERM leaves requests in flight to end."""


class DrainingServer(uvicorn.Server):
    """A uvicorn server whose engine refuses new work as soon as a signal comes."""

    scheduler: Scheduler

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        self.scheduler.drain()
        super().handle_exit(sig, frame)


def serve(options: ServeOptions) -> None:
    """Load the base and answer until SIGTERM or SIGINT."""
    # Before the load, which takes seconds: a port in use should be said at once.
    listener = _bind(options.host, options.port)
    # Nothing is in flight during the load, so a signal need not wait for it.
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: os._exit(0))
    started = time.monotonic()
    torch_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="torch")
    runtime = torch_thread.submit(
        Runtime,
        options.model,
        rows=options.rows,
        context=options.context,
        dtype=options.dtype,
        max_adapters=options.max_adapters,
        threads=options.threads,
    ).result()
    metrics = Metrics(options.served_name)
    scheduler = Scheduler(
        runtime,
        metrics,
        torch_thread,
        rows=options.rows,
        queue=options.queue,
        chunk=options.prefill_chunk,
    )
    server = Server(
        runtime, scheduler, metrics, served_name=options.served_name, api_key=options.api_key
    )
    web = DrainingServer(
        uvicorn.Config(
            server.application(),
            log_level="warning",
            timeout_graceful_shutdown=options.drain_seconds,
            timeout_keep_alive=30,
        )
    )
    web.scheduler = scheduler
    # Listening only now, since until now there was nothing to answer with.
    with _port_errors(options.host, options.port):
        listener.listen(1024)
    print(
        f"engine: {options.served_name} on {runtime.device.type} in "
        f"{str(runtime.dtype).removeprefix('torch.')}, {options.rows} rows of {runtime.context} "
        f"tokens, ready after {time.monotonic() - started:.1f} s on "
        f"http://{options.host}:{listener.getsockname()[1]}",
        flush=True,
    )
    web.run(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with _port_errors(host, port):
        listener.bind((host, port))
    return listener


@contextlib.contextmanager
def _port_errors(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refusal(
            f"Port {port} of {host} cannot be used ({error.strerror}): "
            "stop what listens there, or give --port another."
        ) from error
