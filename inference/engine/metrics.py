"""What the engine counts, under vLLM's metric names so that its dashboards fit."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """One engine's counters, in a registry of its own."""

    def __init__(self, served_name: str) -> None:
        registry = CollectorRegistry()
        labels, name = ["model_name"], served_name

        def gauge(metric: str, text: str) -> Gauge:
            return Gauge(f"vllm:{metric}", text, labels, registry=registry).labels(name)

        def counter(metric: str, text: str) -> Counter:
            return Counter(f"vllm:{metric}", text, labels, registry=registry).labels(name)

        def seconds(metric: str, text: str) -> Histogram:
            return Histogram(
                f"vllm:{metric}", text, labels, buckets=SECONDS, registry=registry
            ).labels(name)

        self.running = gauge("num_requests_running", "Texts being written.")
        self.waiting = gauge("num_requests_waiting", "Texts asked for and not begun.")
        self.adapters = gauge("lora_adapters_loaded", "Adapters that take requests.")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens read.")
        self.generated_tokens = counter("generation_tokens", "Tokens written.")
        self.refused = counter("requests_refused", "Requests answered 429 for want of room.")
        self.failed = counter("requests_failed", "Requests ended by an error in the engine.")
        self.first_token = seconds("time_to_first_token_seconds", "From request to first token.")
        self.whole_text = seconds("e2e_request_latency_seconds", "From request to last token.")
        self.step = seconds("step_seconds", "One step of the whole batch.")
        self._registry = registry

    def render(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)
