"""A machine that is planted: its clock, its session, and the files of its /sys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from edgecnn.backends.base import Array, Tensors
from edgecnn.spec import BackendRef, TensorSpec

FEEDS: dict[str, Array] = {"image": np.zeros((2, 2, 2, 1), dtype=np.uint8)}
FP32 = BackendRef.parse("onnxruntime:fp32")


class Machine:
    """A clock and a session of which each call takes what `cost` says of the moment, in microseconds; sleep is exact or late."""

    device = "cpu"
    inputs = (TensorSpec(name="image", shape=(None, 2, 2, 1), dtype="uint8"),)
    outputs = (TensorSpec(name="logits", shape=(None, 2), dtype="float32"),)

    def __init__(self, cost: Callable[[float], float], oversleep: float = 0.0) -> None:
        self.now = 0
        self.cost, self.oversleep = cost, oversleep
        self.share: Callable[[float], float] = lambda now: 1.0
        self.used = 0.0
        self.began: list[float] = []
        self.listen: Callable[[float], None] = lambda seconds: None

    def perf_counter(self) -> float:
        return self.now / 1e9

    def perf_counter_ns(self) -> int:
        return self.now

    def process_time(self) -> float:
        return self.used

    def sleep(self, seconds: float) -> None:
        self.now += round((seconds + self.oversleep) * 1e9)

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        start = self.now / 1e9
        self.began.append(start)
        self.now += round(self.cost(start) * 1000)
        self.used += self.share(start) * (self.now / 1e9 - start)
        self.listen(self.now / 1e9)
        return {"logits": np.zeros((len(feeds["image"]), 2), dtype=np.float32)}

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def write(root: Path, **files: object) -> None:
    """Write files of a planted /sys; two underscores stand for a slash, three for a colon."""
    for name, value in files.items():
        path = root / name.replace("___", ":").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def zone(root: Path, number: int, name: str, microjoules: object, reach: object = 1_000_000) -> Path:
    """Plant a RAPL zone and return its counter."""
    folder = root / "class" / "powercap" / f"intel-rapl:{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{reach}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"
