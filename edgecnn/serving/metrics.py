"""What `/metrics` tells Prometheus, and the sums that Triton's statistics extension asks for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class Sums:
    """Totals since the start: requests and rows answered, runs of the model, failures, and nanoseconds of each stage."""

    requests: int = 0
    rows: int = 0
    runs: int = 0
    failed: int = 0
    waited_ns: int = 0
    computed_ns: int = 0
    last_ms: int = 0

    def as_triton(self) -> dict[str, Any]:
        """Write them as the statistics extension does; a stage that is not measured by itself is left at nothing."""
        waited = {"count": self.requests, "ns": self.waited_ns}
        computed = {"count": self.requests, "ns": self.computed_ns}
        nothing = {"count": 0, "ns": 0}
        return {
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": self.runs,
            "inference_stats": {
                "success": {"count": self.requests, "ns": self.waited_ns + self.computed_ns},
                "fail": {"count": self.failed, "ns": 0},
                "queue": waited,
                "compute_input": nothing,
                "compute_infer": computed,
                "compute_output": nothing,
            },
            "batch_stats": [],
        }


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self, model: str, runs_on: str) -> None:
        self.registry = registry = CollectorRegistry()
        self.sums = Sums()
        self._requests = Counter("edgecnn_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._rejected = Counter("edgecnn_rejected", "Requests and connections refused.", ["reason"], registry=registry)
        self._stages = Histogram(
            "edgecnn_stage_seconds", "Time of one request in each stage.", ["stage"], registry=registry, buckets=SECONDS
        )
        self.batch_rows = Histogram("edgecnn_batch_rows", "Rows in one run.", registry=registry, buckets=ROWS)
        info = Gauge("edgecnn_model_info", "The model that is served.", ["model", "backend"], registry=registry)
        info.labels(model, runs_on).set(1)
        self.count = functools.cache(lambda route, status: self._requests.labels(route, status).inc)
        self.reject = functools.cache(lambda reason: self._rejected.labels(reason).inc)
        self.stage = functools.cache(lambda name: self._stages.labels(name).observe)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when it is asked for."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def page(self) -> bytes:
        """Write all of them in Prometheus' text format."""
        return generate_latest(self.registry)
