"""Triton's own client against our server: what it asks, sends and reads, it does unchanged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from served import Server, serving

from edgecnn.backends.base import SessionOptions
from edgecnn.bundle import Bundle
from edgecnn.predict import Predictor
from edgecnn.serving.app import make_app
from edgecnn.spec import BackendRef

try:
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException
except ImportError:
    if os.environ.get("CI"):
        raise
    pytest.skip("tritonclient[http] is not installed", allow_module_level=True)

INT8 = BackendRef(backend="onnxruntime", artifact="int8")
TOKEN = {"Authorization": "Bearer a-token"}


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Server]:
    with serving(make_app(bundle, INT8, SessionOptions(threads=1), token="a-token")) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with triton.InferenceServerClient(server.place) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> npt.NDArray[np.float32]:
    """Return what `Predictor` gives for each golden by itself."""
    with Predictor(bundle, INT8, SessionOptions(threads=1)) as predictor:
        return np.concatenate([predictor.probabilities(pixels[None]) for pixels in bundle.goldens().pixels])


def given(pixels: npt.NDArray[np.uint8], binary: bool) -> list[Any]:
    tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return [tensor]


def test_the_client_learns_what_is_served(client: Any, bundle: Bundle) -> None:
    """Health, metadata, configuration, repository and statistics are what the client expects them to be."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("bundle", headers=TOKEN)
    assert client.is_model_ready("bundle", "1", headers=TOKEN)
    assert not client.is_model_ready("other", headers=TOKEN)
    assert not client.is_model_ready("bundle", "2", headers=TOKEN)
    assert "binary_tensor_data" in client.get_server_metadata(headers=TOKEN)["extensions"]
    metadata = client.get_model_metadata("bundle", headers=TOKEN)
    assert [output["name"] for output in metadata["outputs"]] == [spec.name for spec in bundle.manifest.outputs]
    assert client.get_model_config("bundle", "1", headers=TOKEN)["max_batch_size"] > 0
    assert client.get_model_repository_index(headers=TOKEN)[0]["state"] == "READY"
    assert client.get_inference_statistics("bundle", headers=TOKEN)["model_stats"][0]["name"] == "bundle"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_inference_gives_predictors_answers(
    client: Any, bundle: Bundle, expected: npt.NDArray[np.float32], binary_in: bool, binary_out: bool | None
) -> None:
    """Inputs and outputs as JSON or binary, chosen or left to the client, give `Predictor`'s floats bit for bit."""
    pixels = bundle.goldens().pixels
    wanted = None if binary_out is None else [triton.InferRequestedOutput("probabilities", binary_data=binary_out)]
    result = client.infer("bundle", given(pixels, binary_in), outputs=wanted, request_id="r1", headers=dict(TOKEN))
    assert result.get_response()["id"] == "r1"
    got = result.as_numpy("probabilities")
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert got.tobytes() == expected.tobytes()
    assert (result.as_numpy("logits") is None) == (wanted is not None)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression_changes_nothing(
    client: Any, bundle: Bundle, expected: npt.NDArray[np.float32], coding: str
) -> None:
    """Requests and answers compressed by the client's own choice give the same bits, and the answer was compressed."""
    result = client.infer(
        "bundle", given(bundle.goldens().pixels, True), headers=dict(TOKEN),
        request_compression_algorithm=coding, response_compression_algorithm=coding,
    )  # fmt: skip
    assert result.as_numpy("probabilities").tobytes() == expected.tobytes()


def test_concurrent_requests_each_get_their_own(server: Server, bundle: Bundle, expected: Any) -> None:
    """Asynchronous requests for different images over eight connections come back each with its own answer."""
    pixels = bundle.goldens().pixels
    with triton.InferenceServerClient(server.place, concurrency=8) as client:
        order = [index % len(pixels) for index in range(100)]
        asked = [
            client.async_infer("bundle", given(pixels[index : index + 1], True), headers=dict(TOKEN)) for index in order
        ]
        got = [request.get_result().as_numpy("probabilities") for request in asked]
    assert np.concatenate(got).tobytes() == expected[order].tobytes()


def test_classification_is_read(client: Any, bundle: Bundle, expected: npt.NDArray[np.float32]) -> None:
    """The client's class_count gives strings of value, index and label, likeliest first."""
    wanted = [triton.InferRequestedOutput("probabilities", class_count=3)]
    result = client.infer("bundle", given(bundle.goldens().pixels[:2], True), outputs=wanted, headers=dict(TOKEN))
    words = result.as_numpy("probabilities")
    assert words.shape == (2, 3)
    value, index, label = words[0, 0].decode().split(":")
    assert (int(index), label) == (expected[0].argmax(), bundle.manifest.labels[expected[0].argmax()])
    assert float(value) == pytest.approx(float(expected[0].max()), abs=1e-6)


def test_mistakes_are_the_clients_exceptions(client: Any, bundle: Bundle) -> None:
    """Unknown models, wrong tensors, a missing token and what is not offered raise the client's exception with our reason."""
    pixels = bundle.goldens().pixels[:1]
    cases = [
        (lambda: client.infer("other", given(pixels, True), headers=dict(TOKEN)), "404", "no model is called 'other'"),
        (
            lambda: client.infer("bundle", given(pixels[:, :4], True), headers=dict(TOKEN)),
            "400",
            "the model takes UINT8",
        ),
        (lambda: client.infer("bundle", given(pixels, True)), "401", "token"),
        (lambda: client.load_model("bundle", headers=TOKEN), "404", "nothing is at this path"),
        (lambda: client.get_system_shared_memory_status(headers=TOKEN), "404", "nothing is at this path"),
    ]
    for ask, status, said in cases:
        with pytest.raises(InferenceServerException) as caught:
            ask()
        assert caught.value.status() == status
        assert said in caught.value.message()
