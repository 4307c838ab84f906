"""What the server counts, for Prometheus. Queue, rows, tokens and adapters are read when they are asked for; requests and
times are counted as they come.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qia3.server.jobs import Job
from qia3.server.line import Line
from qia3.server.shelf import Shelf

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/classify", "/v1/embeddings", "/v1/models", "/v1/adapters")


class Metrics:
    def __init__(self, shelf: Shelf, line: Line) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("qia3_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self._seconds = Histogram(
            "qia3_request_seconds",
            "From a request to its last byte.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._first = Histogram(
            "qia3_first_token_seconds", "From a request to its first token.", buckets=SECONDS, registry=self.registry
        )
        self.registry.register(_Now(shelf, line))

    def request(self, path: str, status: int, seconds: float) -> None:
        route = path if path in ROUTES else "other"  # names of adapters are in paths, and anybody may ask for anything
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def first_token(self, job: Job) -> None:
        """Counts a job's first one only."""
        if not job.begun:
            job.begun = True
            self._first.observe(time.monotonic() - job.submitted)

    def text(self) -> tuple[bytes, str]:
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _Now(Collector):
    def __init__(self, shelf: Shelf, line: Line) -> None:
        self.shelf, self.line = shelf, line

    def collect(self) -> Iterator[Metric]:
        line, counts = self.line, self.line.counts
        yield GaugeMetricFamily("qia3_queue", "Requests that wait.", len(line.queue))
        yield GaugeMetricFamily("qia3_rows_in_use", "Rows that write.", line.in_use)
        yield GaugeMetricFamily("qia3_rows", "Rows that there are.", line.rows)
        yield CounterMetricFamily("qia3_prompt_tokens", "Tokens of prompts that were run.", counts.prompt_tokens)
        yield CounterMetricFamily("qia3_new_tokens", "Tokens that were written.", counts.new_tokens)
        yield CounterMetricFamily("qia3_steps", "Steps of all rows.", counts.steps)
        jobs = CounterMetricFamily("qia3_jobs", "Jobs by how they ended.", labels=["how"])
        for how, count in list(counts.finished.items()):
            jobs.add_metric([how], count)
        yield jobs
        entries = self.shelf.listed()
        hits = CounterMetricFamily("qia3_adapter_hits", "Requests for each adapter.", labels=["adapter"])
        for entry in entries:
            hits.add_metric([entry.name], entry.hits)
        yield hits
        yield GaugeMetricFamily("qia3_adapter_bytes", "Memory of loaded adapters.", sum(e.nbytes for e in entries))
