"""The server's answers, over real sockets: those of `predict`, in every way of asking, and what it says to mistakes."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from served import Answer, Server, sample, serving

from edgecnn.backends.base import SessionOptions
from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.serving.access import Access
from edgecnn.serving.app import SERVICE, make_app
from edgecnn.serving.limits import Limits
from edgecnn.spec import BackendRef

ONE_THREAD = SessionOptions(threads=1)
FP32 = BackendRef(backend="onnxruntime", artifact="fp32")


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Server]:
    with serving(make_app(bundle, FP32, ONE_THREAD)) as running:
        yield running


@pytest.fixture(scope="module")
def truth(bundle: Bundle) -> dict[str, npt.NDArray[np.float32]]:
    """Return what plain ONNX Runtime, one golden at a time, gives for each output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(bundle.root / "fp32.onnx"), options, ["CPUExecutionProvider"])
    runs = [session.run(None, {"image": pixels[None]}) for pixels in bundle.goldens().pixels]
    names = [output.name for output in session.get_outputs()]
    return {name: np.concatenate([run[index] for run in runs]) for index, name in enumerate(names)}


def infer(server: Server, request: dict[str, Any], binary: bytes = b"", **headers: str) -> Answer:
    """Ask for an inference with JSON and, behind it, binary data."""
    head = json.dumps(request).encode()
    sent = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    return server.ask("/v2/models/bundle/infer", head + binary, {**sent, **headers})


def tensor(pixels: npt.NDArray[np.uint8], **more: Any) -> dict[str, Any]:
    return {"name": "image", "shape": list(pixels.shape), "datatype": "UINT8", **more}


def test_predict_answers_as_the_command_does(
    bundle: Bundle, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """POST /predict gives for every golden what `edgecnn predict --json` prints, bit for bit, but for path and times."""
    files = [str(bundle.root / name) for name in bundle.manifest.goldens.images]
    arguments = [
        "predict",
        str(bundle.root),
        *files,
        "-b",
        "onnxruntime:fp32",
        "--threads",
        "1",
        "--json",
        "--top",
        "4",
    ]
    cli(arguments, standalone_mode=False)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(printed) == len(files) > 1
    for line, encoded in zip(printed, bundle.goldens().encoded, strict=True):
        answer = server.ask("/predict?top=4", encoded)
        assert answer.status == 200, answer.body
        got = answer.json
        assert got.pop("ms").keys() == line.pop("ms").keys()
        line.pop("path")
        assert got == line
        assert got["sha256"] == hashlib.sha256(encoded).hexdigest()


def test_predict_takes_a_form(bundle: Bundle, server: Server) -> None:
    """An image in a multipart form, with a field and bytes like line ends beside it, is answered as the image by itself."""
    encoded = bundle.goldens().encoded[0]
    form = (
        b'--b"x\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
        b'--b"x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        + encoded
        + b'\r\n--b"x--\r\n'
    )
    alone = server.ask("/predict", encoded).json
    answer = server.ask("/predict", form, {"Content-Type": 'multipart/form-data; boundary="b\\"x"'})
    assert answer.status == 200, answer.body
    assert {**answer.json, "ms": None} == {**alone, "ms": None}


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (b"", "no whole multipart form"),
        (b"--b\r\n\r\n", "no whole multipart form"),
        (b"--b\r\nContent-Disposition: form-data; name=n\r\n\r\nx\r\n--b--", "0 files"),
        (b"--b\r\nX: filename\r\n\r\nx\r\n--b\r\nX: filename\r\n\r\nx\r\n--b--", "2 files"),
    ],
)
def test_forms_without_one_image_are_refused(server: Server, form: bytes, said: str) -> None:
    """A form that is cut short, or has no file or two, is a 400 that says so."""
    answer = server.ask("/predict", form, {"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status == 400
    assert said in answer.json["error"]


def test_threshold_gives_unknown(bundle: Bundle, server: Server) -> None:
    """A threshold above the highest probability makes the label unknown and leaves the rest."""
    answer = server.ask("/predict?threshold=1&top=1", bundle.goldens().encoded[0])
    assert answer.json["label"] == "unknown"
    assert answer.json["top"][0]["label"] == bundle.manifest.labels[int(bundle.goldens().logits_float64[0].argmax())]


@pytest.mark.parametrize(
    ("query", "body", "said"),
    [
        ("", b"no image", "not an image"),
        ("", b"", "empty"),
        ("?top=0", None, "at least 1"),
        ("?top=three", None, "not a number"),
        ("?top=", None, "empty"),
        ("?threshold=nan", None, "threshold"),
        ("?threshold=2", None, "threshold"),
    ],
)
def test_bad_images_and_queries_are_400(
    bundle: Bundle, server: Server, query: str, body: bytes | None, said: str
) -> None:
    """What is no image, or no sensible number, is a 400 with one line of JSON that says why."""
    answer = server.ask(f"/predict{query}", bundle.goldens().encoded[0] if body is None else body)
    assert (answer.status, list(answer.json)) == (400, ["error"])
    assert said in answer.json["error"]


def test_json_tensors_give_what_the_model_gives(
    bundle: Bundle, server: Server, truth: dict[str, npt.NDArray[np.float32]]
) -> None:
    """Nested and flat JSON data of several rows give plain ONNX Runtime's outputs, every float exactly."""
    pixels = bundle.goldens().pixels[:3]
    for data in (pixels.tolist(), pixels.ravel().tolist()):
        answer = infer(server, {"id": "seven", "inputs": [tensor(pixels, data=data)]})
        assert answer.status == 200, answer.body
        got = answer.json
        assert (got["id"], got["model_name"], got["model_version"]) == ("seven", "bundle", "1")
        assert [output["name"] for output in got["outputs"]] == list(truth)
        for output in got["outputs"]:
            expected = truth[output["name"]][:3]
            assert (output["datatype"], output["shape"]) == ("FP32", list(expected.shape))
            assert np.array_equal(np.array(output["data"], np.float32).reshape(expected.shape), expected)


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_binary_tensors_give_what_the_model_gives(
    bundle: Bundle, server: Server, truth: dict[str, npt.NDArray[np.float32]], coding: str | None
) -> None:
    """Binary data in and out, compressed both ways or not, give plain ONNX Runtime's outputs byte for byte."""
    pixels = bundle.goldens().pixels
    request = {
        "inputs": [tensor(pixels, parameters={"binary_data_size": pixels.nbytes})],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}, {"name": "logits"}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(request).encode()
    body, headers = head + pixels.tobytes(), {"Inference-Header-Content-Length": str(len(head))}
    if coding:
        body = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
        headers |= {"Content-Encoding": coding, "Accept-Encoding": coding}
    answer = server.ask("/v2/models/bundle/versions/1/infer", body, headers)
    assert answer.status == 200, answer.body
    assert answer.headers.get("Content-Encoding") == coding
    received = answer.body
    if coding:
        received = gzip.decompress(received) if coding == "gzip" else zlib.decompress(received)
    length = int(answer.headers["Inference-Header-Content-Length"])
    described = json.loads(received[:length])["outputs"]
    assert [output["name"] for output in described] == ["probabilities", "logits"]
    assert received[length:] == truth["probabilities"].tobytes() + truth["logits"].tobytes()


def test_classification_names_the_highest(bundle: Bundle, server: Server, truth: dict[str, Any]) -> None:
    """The classification extension gives each row's highest values with index and label, as JSON and as bytes."""
    pixels = bundle.goldens().pixels[:2]
    wanted = {"name": "probabilities", "parameters": {"classification": 2}}
    answer = infer(server, {"inputs": [tensor(pixels, data=pixels.tolist())], "outputs": [wanted]}).json["outputs"][0]
    assert (answer["datatype"], answer["shape"]) == ("BYTES", [2, 2])
    order = np.argsort(-truth["probabilities"][:2], axis=1)[:, :2]
    expected = [
        f"{truth['probabilities'][row, index]:f}:{index}:{bundle.manifest.labels[index]}"
        for row in range(2)
        for index in order[row]
    ]
    assert answer["data"] == expected
    wanted["parameters"] = {"classification": 2, "binary_data": True}
    binary = infer(server, {"inputs": [tensor(pixels, data=pixels.tolist())], "outputs": [wanted]})
    raw = binary.body[int(binary.headers["Inference-Header-Content-Length"]) :]
    assert raw == b"".join(len(word).to_bytes(4, "little") + word.encode() for word in expected)


def _image(**changes: Any) -> dict[str, Any]:
    return {"name": "image", "shape": [1, 8, 8, 1], "datatype": "UINT8", "data": [0] * 64, **changes}


BAD_REQUESTS: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "not an inference request"),
    "no object": ([], "not an inference request"),
    "no inputs": ({}, "not an inference request"),
    "deep": (b"[" * 100_000, "not an inference request"),
    "deep data": (
        b'{"inputs":[{"name":"image","shape":[1],"datatype":"UINT8","data":' + b"[" * 50_000,
        "not an inference",
    ),
    "no input": ({"inputs": []}, "the inputs given are []"),
    "another input": ({"inputs": [_image(name="x")]}, "the model's are ['image']"),
    "two inputs": ({"inputs": [_image(), _image()]}, "the inputs given"),
    "another type": ({"inputs": [_image(datatype="FP32")]}, "FP32"),
    "another shape": ({"inputs": [_image(shape=[1, 8, 8, 3])]}, "[1, 8, 8, 3]"),
    "no rows": ({"inputs": [_image(shape=[0, 8, 8, 1], data=[])]}, "[0, 8, 8, 1]"),
    "negative": ({"inputs": [_image(shape=[-1, 8, 8, 1])]}, "[-1, 8, 8, 1]"),
    "huge": ({"inputs": [_image(shape=[2**62, 8, 8, 1])]}, "64 values"),
    "too few": ({"inputs": [_image(data=[0] * 63)]}, "63 values"),
    "too large a number": ({"inputs": [_image(data=[256] + [0] * 63)]}, "no UINT8"),
    "negative number": ({"inputs": [_image(data=[-1] + [0] * 63)]}, "no UINT8"),
    "fraction": ({"inputs": [_image(data=[0.5] + [0] * 63)]}, "no UINT8"),
    "words": ({"inputs": [_image(data=["x" * 1000] + [""] * 63)]}, "no UINT8"),
    "null": ({"inputs": [_image(data=None)]}, "neither one flat list"),
    "ragged": ({"inputs": [_image(data=[[[[0]] * 8] * 7 + [[[0]] * 7]])]}, "no UINT8"),
    "shallow": ({"inputs": [_image(data=[[0] * 64])]}, "neither one flat list"),
    "no data": ({"inputs": [{"name": "image", "shape": [1, 8, 8, 1], "datatype": "UINT8"}]}, "needs either"),
    "both": ({"inputs": [_image(parameters={"binary_data_size": 0})]}, "needs either"),
    "binary, not there": ({"inputs": [_image(parameters={"binary_data_size": 64})]}, "binary_data_size 64"),
    "binary, a word": ({"inputs": [_image(parameters={"binary_data_size": "64"})]}, "binary_data_size '64'"),
    "shared memory": ({"inputs": [_image(parameters={"shared_memory_region": "x"})]}, "shared memory"),
    "another output": ({"inputs": [_image()], "outputs": [{"name": "x"}]}, "['logits', 'probabilities']"),
    "an output twice": ({"inputs": [_image()], "outputs": [{"name": "logits"}] * 2}, "the outputs wanted"),
    "output shared": (
        {"inputs": [_image()], "outputs": [{"name": "logits", "parameters": {"shared_memory_region": "x"}}]},
        "shared memory",
    ),
    "classes": (
        {"inputs": [_image()], "outputs": [{"name": "logits", "parameters": {"classification": "3"}}]},
        "number of classes",
    ),
    "flag": ({"inputs": [_image()], "parameters": {"binary_data_output": 1}}, "true or false"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_inference_requests_are_400(server: Server, case: str) -> None:
    """A request that is no such request, or whose tensors are not the model's, is a 400 that says what is wrong."""
    request, said = BAD_REQUESTS[case]
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    answer = server.ask("/v2/models/bundle/infer", body)
    assert answer.status == 400, answer.body
    assert said in answer.json["error"]


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999", "x", "", "9" * 5000])
def test_a_wrong_header_length_is_400(server: Server, length: str) -> None:
    """An Inference-Header-Content-Length that is no number, or longer than the body, is a 400."""
    answer = server.ask("/v2/models/bundle/infer", b"{}", {"Inference-Header-Content-Length": length})
    assert answer.status == 400
    assert "Inference-Header-Content-Length" in answer.json["error"]


def test_bytes_that_belong_to_no_input_are_400(server: Server) -> None:
    """Binary data that no input claims, or one byte fewer than its shape asks for, are refused."""
    request = {"inputs": [{**_image(parameters={"binary_data_size": 64})}]}
    request["inputs"][0].pop("data")
    assert "1 bytes of the body" in infer(server, request, bytes(65)).json["error"]
    request["inputs"][0]["parameters"]["binary_data_size"] = 63
    assert "63 bytes of binary data" in infer(server, request, bytes(63)).json["error"]


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/nothing", "GET", 404),
        ("/v2/models/other", "GET", 404),
        ("/v2/models/other/infer", "POST", 404),
        ("/v2/models/bundle/versions/2/infer", "POST", 404),
        ("/v2/models/bundle/infer", "GET", 405),
        ("/predict", "GET", 405),
        ("/predict/../../etc/passwd", "GET", 404),
        ("/bundle/../manifest.json", "GET", 404),
    ],
)
def test_unknown_places_are_json_errors(server: Server, path: str, method: str, status: int) -> None:
    """An unknown path, model, version or method is answered by its status and one line of JSON."""
    answer = server.ask(path, b"{}" if method == "POST" else None, method=method)
    assert (answer.status, list(answer.json)) == (status, ["error"])
    assert answer.headers["Content-Type"].startswith("application/json")
    if status == 405:
        assert answer.headers["Allow"]


def test_metadata_is_the_manifests(bundle: Bundle, server: Server) -> None:
    """The model's name, inputs and outputs are those of the manifest, with -1 for the batch; the config leaves it out."""
    model = server.ask("/v2/models/bundle").json
    for side in ("inputs", "outputs"):
        described = [(spec.name, [-1, *spec.shape[1:]]) for spec in getattr(bundle.manifest, side)]
        assert [(entry["name"], entry["shape"]) for entry in model[side]] == described
    config = server.ask("/v2/models/bundle/versions/1/config").json
    assert config["input"][0]["dims"] == list(bundle.manifest.preprocess.shape)
    assert (config["input"][0]["data_type"], config["max_batch_size"]) == ("TYPE_UINT8", 8)
    assert server.ask("/v2").json["name"] == "edgecnn"
    assert server.ask("/v2/models").json == {"models": ["bundle"]}


def test_metrics_count_what_happens(bundle: Bundle) -> None:
    """Requests by route and status, rows, stages and refusals are counted; nothing a client writes becomes a label."""
    with serving(make_app(bundle, FP32, ONE_THREAD)) as server:
        for _ in range(3):
            server.ask("/predict", bundle.goldens().encoded[0])
        server.ask("/predict", b"x")
        server.ask("/v2/models/other")
        server.ask("/made-up-by-a-client")
        page = server.ask("/metrics")
        stats = server.ask("/v2/models/bundle/stats").json["model_stats"][0]
    assert page.headers["Content-Type"].startswith("text/plain")
    assert sample(page.body, 'edgecnn_requests_total{route="/predict",status="200"}') == 3
    assert sample(page.body, 'edgecnn_requests_total{route="/predict",status="400"}') == 1
    assert sample(page.body, 'edgecnn_requests_total{route="none",status="404"}') == 1
    assert sample(page.body, 'edgecnn_rejected_total{reason="404"}') == 1
    assert sample(page.body, "edgecnn_batch_rows_sum") == 3
    assert sample(page.body, 'edgecnn_stage_seconds_count{stage="decode"}') == 3
    assert sample(page.body, "edgecnn_queue_requests") == 0
    assert sample(page.body, "edgecnn_body_bytes") == 0
    assert b"made-up" not in page.body
    assert (stats["inference_count"], stats["execution_count"]) == (3, 3)
    assert stats["inference_stats"]["success"]["count"] == 3


def test_answers_of_many_clients_are_each_their_own(bundle: Bundle, truth: dict[str, Any]) -> None:
    """Thirty-two clients at once, run in batches, each get for every image exactly the floats that it gets alone."""
    goldens = bundle.goldens()
    app = make_app(bundle, FP32, ONE_THREAD, Limits(max_delay=0.005))
    with serving(app) as server, ThreadPoolExecutor(32) as clients:

        def ask(number: int) -> tuple[int, Any]:
            index = number % len(goldens.encoded)
            return index, server.ask("/predict?top=10", goldens.encoded[index]).json

        answers = list(clients.map(ask, range(320)))
        sums = app[SERVICE].metrics.sums
    assert (sums.rows, len(answers)) == (320, 320)
    assert sums.runs < 320, "nothing was ever run together, so this shows nothing"
    for index, answer in answers:
        expected = {
            label: float(value)
            for label, value in zip(bundle.manifest.labels, truth["probabilities"][index], strict=True)
        }
        assert {guess["label"]: guess["probability"] for guess in answer["top"]} == expected


def test_a_token_is_asked_for(bundle: Bundle) -> None:
    """With a token only health and the page answer without it; a wrong one is 401, and nothing of it is echoed."""
    with serving(make_app(bundle, FP32, ONE_THREAD, token="right-one")) as server:
        for path in ("/v2/health/live", "/v2/health/ready", "/"):
            assert server.ask(path).status == 200, path
        for path in ("/v2", "/v2/models/bundle", "/metrics", "/nothing", "/bundle/manifest.json"):
            assert server.ask(path).status == 401, path
            assert server.ask(path, headers={"Authorization": "Bearer right-one"}).status != 401, path
        for header in ("Bearer wrong", "right-one", "Basic right-one", "Bearer right-one2", "Bearer \xff", "Bearer"):
            refused = server.ask("/v2", headers={"Authorization": header})
            assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert b"right-one" not in refused.body


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:80", 200), ("127.0.0.1", 200), ("127.9.9.9:1", 200), ("[::1]:8000", 200),
        ("box.example:80", 200), ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("localhost.evil.example", 403),
        ("10.0.0.1", 403), ("", 403),
    ],
)  # fmt: skip
def test_only_names_of_this_machine_are_answered_to(bundle: Bundle, host: str, status: int) -> None:
    """A loopback server refuses a request that calls it by a name of the internet, as DNS rebinding does."""
    app = make_app(bundle, FP32, ONE_THREAD, access=Access(hosts=("box.example",)))
    with serving(app) as server:
        assert server.ask("/v2", headers={"Host": host}).status == status


def test_pages_of_other_sites_are_not_answered(server: Server) -> None:
    """A browser's request from another site's page is refused and gets no CORS header; one from our page is answered."""
    refused = server.ask("/predict", b"x", {"Origin": "http://evil.example"})
    assert refused.status == 403
    assert server.ask("/predict", b"x", {"Origin": "null"}).status == 403
    own = server.ask("/v2", headers={"Origin": f"http://{server.place}"})
    assert own.status == 200
    assert not [name for answer in (refused, own) for name in answer.headers if name.startswith("Access-Control")]
