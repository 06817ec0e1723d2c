"""What a client or an operator of `edgecnn serve` gets wrong, and what a request may not cost the others."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from served import Server, serving

from edgecnn.backends.base import SessionOptions
from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.serving import page as served_page
from edgecnn.serving import run as serving_run
from edgecnn.serving.app import make_app
from edgecnn.serving.batching import Batcher, Work
from edgecnn.serving.limits import Limits
from edgecnn.spec import BackendRef

FP32, ONE_THREAD = BackendRef(backend="onnxruntime", artifact="fp32"), SessionOptions(threads=1)


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


def infer(server: Server, bundle: Bundle, rows: int) -> tuple[int, dict[str, object]]:
    """Ask for so many rows of black pixels, in binary."""
    shape = [rows, *(size for size in bundle.manifest.inputs[0].shape if size is not None)]
    size = int(np.prod(shape))
    tensor = {"name": "image", "shape": shape, "datatype": "UINT8", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    path = f"/v2/models/{bundle.manifest.name}/infer"
    answer = server.ask(path, head + bytes(size), {"Inference-Header-Content-Length": str(len(head))})
    return answer.status, json.loads(answer.body)


def test_an_answer_is_no_larger_than_its_limit(bundle: Bundle) -> None:
    """Rows whose outputs are more numbers than the limit are 413 before anything is computed; as many as it says are answered."""
    with serving(make_app(bundle, FP32, ONE_THREAD, Limits(values=100))) as server:
        each = sum(spec.shape[1] or 0 for spec in bundle.manifest.outputs)
        most = 100 // each
        status, said = infer(server, bundle, most + 1)
        assert (status, said["error"]) == (
            413, f"one request may hold {most} rows here, and this has {most + 1}: send several",
        )  # fmt: skip
        assert infer(server, bundle, most)[0] == 200


def test_a_run_that_nobody_waits_for_is_not_finished() -> None:
    """Of a long request that was given up in its first piece, the other pieces are not computed."""

    async def given_up() -> tuple[int, int]:
        loop, ran, ended = asyncio.get_running_loop(), [], asyncio.Event()
        work = Work(loop.create_future(), ended.set, np.zeros((800, 2), np.uint8))

        def run(rows: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> dict[str, np.ndarray]:
            ran.append(len(rows))
            work.answer.cancel()
            return {"out": rows}

        counted: list[int] = []
        batcher = Batcher(run, 8, 0.0, lambda rows, waited, took: counted.append(rows))
        batcher.start()
        batcher.put(work)
        await asyncio.wait_for(ended.wait(), 20)
        batcher.close(20)
        return len(ran), len(counted)

    assert asyncio.run(given_up()) == (1, 0)


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/predict?treshold=0.9", b"x", 400, "/predict takes top and threshold, and not 'treshold'"),
        ("/predict", None, 405, "GET is not taken here; POST is"),
        ("/nowhere", None, 404, "nothing is at this path; / is the page"),
    ],
)
def test_what_is_asked_wrongly_is_told_what_is_right(
    path: str, body: bytes | None, status: int, told: str, bundle: Bundle
) -> None:
    """A parameter, a method and a path that are not here are answered with those that are."""
    with serving(make_app(bundle, FP32, ONE_THREAD)) as server:
        answer = server.ask(path, body)
        assert answer.status == status
        assert told in json.loads(answer.body)["error"]


@pytest.mark.parametrize(
    "content", [b"a" * 4097, b"two\nlines", b"\n", b"\xff"], ids=["long", "lines", "empty", "binary"]
)
def test_a_token_file_that_holds_no_token_is_refused(
    content: bytes, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is cut to fit: whoever has the whole token would be turned away. The line names the file."""
    monkeypatch.setattr(serving_run, "run", lambda *_: None)  # a server that takes it would serve for ever
    file = tmp_path / "token"
    file.write_bytes(content)
    result = CliRunner().invoke(cli, ["serve", str(bundle.root), "--host", "0.0.0.0", "--token-file", str(file)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"edgecnn: {file}: a token is one line of printable ASCII of at most 4096 bytes")


def test_drawings_take_the_share_that_they_take_in_the_goldens(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A box of 12 by 20 pixels of 28 is 20/28, whether light or dark; photographs have no such share."""
    pixels = np.zeros((5, 28, 28, 1), np.uint8)
    pixels[:, 4:24, 8:20] = 200
    noise = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)
    for shown, dark, share in (
        (pixels, True, 0.714),
        (255 - pixels, False, 0.714),
        (noise, True, None),
        (pixels[:, :4], True, None),
    ):
        goldens = type("Goldens", (), {"pixels": shown})
        monkeypatch.setattr(bundle, "goldens", lambda goldens=goldens: goldens)
        assert served_page.drawn_share(bundle, dark) == share
