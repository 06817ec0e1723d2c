"""Deployments over OpenSSH on loopback, without what verify takes: the first, the same again, half a file there, against scp.

BUNDLE names a bundle of ordinary size; the large one is that with 40 MB of noise for its int8 artifact.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import demo_bundle, print_machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from loopback import Loopback, pretend_edgecnn

from edgecnn import ssh
from edgecnn.device.deploy import deploy
from edgecnn.ssh import Destination

ROUNDS, LARGE = 7, 40_000_000


def large_bundle(bundle: Path, folder: Path) -> Path:
    """Copy a bundle and make one of its files large."""
    shutil.copytree(bundle, folder)
    data = os.urandom(LARGE)
    (folder / "int8.onnx").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["int8.onnx"] = {"size": LARGE, "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rounds(box: Loopback, bundle: Path) -> dict[str, list[float]]:
    """Time every way once a round, in turns."""
    to, home = Destination.parse("box"), box.home / "edgecnn"
    data = (bundle / "int8.onnx").read_bytes()
    scp = ["scp", "-O", "-q", "-r", "-F", str(box.config), str(bundle), f"box:{box.home}/copied"]
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        found = {"first": seconds(lambda: deploy(bundle, to)), "again": seconds(lambda: deploy(bundle, to))}
        shutil.rmtree(home)
        (home / "partial").mkdir(parents=True)
        (home / "partial" / f"{hashlib.sha256(data).hexdigest()}.part").write_bytes(data[: len(data) // 2])
        found["half of the artifact there"] = seconds(lambda: deploy(bundle, to))
        shutil.rmtree(home)
        found["scp -r, nothing verified"] = seconds(lambda: subprocess.run(scp, check=True))
        shutil.rmtree(box.home / "copied")
        for name, value in found.items():
            times.setdefault(name, []).append(value)
    return times


def main() -> None:
    """Print the median and the range of each way."""
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        server = Loopback(Path(tempfile.mkdtemp(dir=folder)))
        try:
            server.begin(Path(folder) / "home")
            server.plant(pretend_edgecnn(Path(folder) / "packages"))
            os.environ[ssh.OPTIONS] = f"-F {server.config}"
            small = Path(os.environ["BUNDLE"]) if "BUNDLE" in os.environ else demo_bundle()
            for bundle in (small, large_bundle(small, Path(folder) / "large")):
                size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
                for name, times in rounds(server, bundle).items():
                    told = f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
                    print(f"{size / 1e6:.2f} MB  {name:28} {told}, n={len(times)}")
        finally:
            server.close()


if __name__ == "__main__":
    main()
