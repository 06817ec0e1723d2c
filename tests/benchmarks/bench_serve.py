"""Requests a second and p99 of `edgecnn serve` at 1, 8 and 64 clients on loopback, by wrk; and that every answer is right.

    python tests/benchmarks/bench_serve.py [--seconds 10] [--rounds 3]

Each round runs every number of clients once, for `POST /predict` with a PNG and for binary tensors to `/infer`. Before
that a client of our own asks for every golden many times at each number of clients and compares each answer with
`Predictor`'s, bit for bit. wrk and its counts of errors come from https://github.com/wg/wrk (`apt-get install wrk`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import numpy as np
from common import demo_bundle, print_machine

from edgecnn.backends.base import SessionOptions
from edgecnn.bundle import Bundle
from edgecnn.predict import Predictor

CLIENTS = (1, 8, 64)


@contextmanager
def served(bundle: Path) -> Iterator[int]:
    """Run the server with its defaults, on one thread of the model, and give its port."""
    command = [sys.executable, "-m", "edgecnn", "serve", str(bundle), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr
        line = child.stderr.readline()
        while line and "http://127.0.0.1:" not in line:
            line = child.stderr.readline()
        try:
            yield int(line.partition("127.0.0.1:")[2].partition("/")[0])
        finally:
            child.terminate()
            assert child.wait(20) == 0


async def ask(stream: tuple[asyncio.StreamReader, asyncio.StreamWriter], body: bytes) -> tuple[int, bytes]:
    """Send one image over an open connection; return status and body."""
    reader, writer = stream
    writer.write(b"POST /predict?top=1000 HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])
    return int(head.split(b" ", 2)[1]), await reader.readexactly(length)


async def check(
    port: int, clients: int, encoded: tuple[bytes, ...], expected: list[dict[str, float]], each: int
) -> int:
    """Let every client ask for every golden `each` times; return how many answers are lost or wrong."""

    async def client(number: int) -> int:
        stream = await asyncio.open_connection("127.0.0.1", port)
        bad = 0
        for step in range(each * len(encoded)):
            index = (step + number) % len(encoded)
            status, body = await ask(stream, encoded[index])
            got = {guess["label"]: guess["probability"] for guess in json.loads(body).get("top", ())}
            bad += status != 200 or got != expected[index]
        stream[1].close()
        return bad

    return sum(await asyncio.gather(*(client(number) for number in range(clients))))


def load(port: int, clients: int, seconds: int, script: Path, path: str) -> tuple[float, float, float, str]:
    """Run wrk; return requests a second, p50 and p99 in milliseconds, and what it says went wrong."""
    command = [
        "wrk",
        "-t1",
        f"-c{clients}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(script),
        f"http://127.0.0.1:{port}{path}",
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])
    half, most = (_ms(re.search(rf"{share}%\s+([\d.]+)(us|ms|s)\b", said)) for share in (50, 99))
    wrong = " ".join(line.strip() for line in said.splitlines() if "Non-2xx" in line or "Socket errors" in line)
    return rate, half, most, wrong


def _ms(found: re.Match[str]) -> float:
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


def write_scripts(folder: Path, bundle: Bundle) -> dict[str, Path]:
    """Write for each way of asking the Lua that makes wrk ask so."""
    goldens, name = bundle.goldens(), bundle.manifest.name
    pixels = goldens.pixels[:1]
    tensor = {"name": bundle.manifest.inputs[0].name, "shape": pixels.shape, "datatype": "UINT8",
              "parameters": {"binary_data_size": pixels.nbytes}}  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    bodies = {
        "/predict": (goldens.encoded[0], ""),
        f"/v2/models/{name}/infer": (
            head + pixels.tobytes(), f'wrk.headers["Inference-Header-Content-Length"] = "{len(head)}"\n'
        ),
    }  # fmt: skip
    scripts = {}
    for number, (path, (body, more)) in enumerate(bodies.items()):
        (folder / f"{number}.body").write_bytes(body)
        scripts[path] = folder / f"{number}.lua"
        scripts[path].write_text(
            f'wrk.method = "POST"\nlocal f = io.open("{folder / f"{number}.body"}", "rb")\n'
            f'wrk.body = f:read("*a")\nf:close()\n{more}'
        )
    return scripts


def main() -> None:
    """Check, then measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bundle", type=Path)
    given = parser.parse_args()
    print_machine()
    bundle = Bundle.open(given.bundle or demo_bundle())
    goldens = bundle.goldens()
    with Predictor(bundle, options=SessionOptions(threads=1)) as predictor:
        rows = np.concatenate([predictor.probabilities(pixels[None]) for pixels in goldens.pixels])
    expected = [dict(zip(bundle.manifest.labels, map(float, row), strict=True)) for row in rows]
    with served(bundle.root) as port, tempfile.TemporaryDirectory() as folder:
        for clients in CLIENTS:
            each, start = max(1, 2000 // (clients * len(expected))), perf_counter()
            bad = asyncio.run(check(port, clients, goldens.encoded, expected, each))
            asked = clients * each * len(expected)
            print(f"{clients} clients: {asked} answers compared with Predictor's, {bad} lost or wrong "
                  f"({asked / (perf_counter() - start):.0f} a second, the client in Python)")  # fmt: skip
        if not shutil.which("wrk"):
            print("wrk is not installed: no rates")
            return
        scripts = write_scripts(Path(folder), bundle)
        measured: dict[tuple[str, int], list[tuple[float, float, float, str]]] = {}
        for _ in range(given.rounds):
            for path, script in scripts.items():
                for clients in CLIENTS:
                    measured.setdefault((path, clients), []).append(load(port, clients, given.seconds, script, path))
    for (path, clients), runs in measured.items():
        rates, halves, most, wrong = zip(*runs, strict=True)
        print(f"{path}, {clients} clients: {statistics.median(rates):.0f} requests/s ({min(rates):.0f} to {max(rates):.0f}), "
              f"p50 {statistics.median(halves):.2f} ms, p99 {statistics.median(most):.2f} ms ({min(most):.2f} to "
              f"{max(most):.2f}); {' '.join(filter(None, wrong)) or 'no errors'}")  # fmt: skip


if __name__ == "__main__":
    main()
