"""Metrics for Prometheus. Queue, rows, tokens and adapters are read at each scrape; requests and times are counted as
they occur.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qia3.server.jobs import Job
from qia3.server.models import Models

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/classify", "/v1/embeddings", "/v1/models", "/v1/adapters")


class Metrics:
    def __init__(self, models: Models) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("qia3_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self._seconds = Histogram(
            "qia3_request_seconds",
            "Seconds from a request to its last byte.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._first = Histogram(
            "qia3_first_token_seconds", "Seconds to the first token.", buckets=SECONDS, registry=self.registry
        )
        self.registry.register(_Now(models))

    def request(self, path: str, status: int, seconds: float) -> None:
        route = path if path in ROUTES else "other"  # paths contain adapter names and anything that clients send
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def first_token(self, job: Job) -> None:
        """Counts only a job's first token."""
        if not job.begun:
            job.begun = True
            self._first.observe(time.monotonic() - job.submitted)

    def text(self) -> tuple[bytes, str]:
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _Now(Collector):
    """The current figures of each bundle."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        lines = {one.model.name: one.line for one in self.models.served}
        yield _gauge("queue", "Waiting requests.", {n: len(line.queue) for n, line in lines.items()})
        yield _gauge("rows_in_use", "Rows that generate or rank.", {n: line.in_use for n, line in lines.items()})
        yield _gauge("rows", "Rows in total.", {n: line.rows for n, line in lines.items()})
        counts = {name: line.counts for name, line in lines.items()}
        yield _counter("prompt_tokens", "Prompt tokens that were run.", {n: c.prompt_tokens for n, c in counts.items()})
        yield _counter("new_tokens", "Tokens that were generated.", {n: c.new_tokens for n, c in counts.items()})
        yield _counter("steps", "Steps of all rows.", {n: c.steps for n, c in counts.items()})
        jobs = CounterMetricFamily("qia3_jobs", "Jobs by how they ended.", labels=["bundle", "how"])
        for name, count in counts.items():
            for how, value in list(count.finished.items()):
                jobs.add_metric([name, how], value)
        yield jobs
        hits = CounterMetricFamily("qia3_adapter_hits", "Requests for each adapter.", labels=["bundle", "adapter"])
        held = GaugeMetricFamily("qia3_adapter_bytes", "Memory of loaded adapters.", labels=["bundle"])
        for one in self.models.served:
            entries = one.model.shelf.listed()
            held.add_metric([one.model.name], sum(e.nbytes for e in entries))
            for entry in entries:
                if entry.hits:  # only adapters that were asked for
                    hits.add_metric([one.model.name, entry.name], entry.hits)
        yield from (hits, held)


def _gauge(name: str, text: str, values: Mapping[str, float]) -> Metric:
    found = GaugeMetricFamily(f"qia3_{name}", text, labels=["bundle"])
    for bundle, value in values.items():
        found.add_metric([bundle], value)
    return found


def _counter(name: str, text: str, values: Mapping[str, float]) -> Metric:
    found = CounterMetricFamily(f"qia3_{name}", text, labels=["bundle"])
    for bundle, value in values.items():
        found.add_metric([bundle], value)
    return found
