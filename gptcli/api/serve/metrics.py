"""Counters of the server, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gptcli.api.serve.worker import Worker

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The counts and times of what happened since the server began."""

    def __init__(self, worker: Worker) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("gptcli_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self.prompt_tokens = Counter("gptcli_prompt_tokens", "Tokens of prompts", registry=self.registry)
        self.cached_tokens = Counter(
            "gptcli_cached_prompt_tokens", "Tokens of prompts taken from earlier texts", registry=self.registry
        )
        self.tokens = Counter("gptcli_generated_tokens", "Tokens written", registry=self.registry)
        self.first_token = Histogram(
            "gptcli_first_token_seconds", "From a request to its first token", buckets=SECONDS, registry=self.registry
        )
        self.seconds = Histogram(
            "gptcli_request_seconds", "From a request to its last byte", buckets=SECONDS, registry=self.registry
        )
        gauges = {
            "gptcli_rows_running": ("Texts in the making", lambda: len(worker.running)),
            "gptcli_queue_texts": ("Texts that wait for a row", lambda: worker.pending),
        }
        for name, (what, value) in gauges.items():
            Gauge(name, what, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """Return all of it in the text format."""
        return generate_latest(self.registry)
