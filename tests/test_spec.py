"""The value types: what they take, what they refuse, and how they are written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgecnn.errors import BackendError, DamagedError, UsageError
from edgecnn.spec import TARGETS, Artifact, BackendRef, Frozen, Preprocess, TensorSpec, Tolerance, to_json

REFS = {
    "torch": ("torch", None, "cpu"),
    "onnxruntime:int8": ("onnxruntime", "int8", "cpu"),
    "onnxruntime@cuda:0": ("onnxruntime", None, "cuda:0"),
    "onnxruntime:fp32@cuda:0": ("onnxruntime", "fp32", "cuda:0"),
    "torch@cpu": ("torch", None, "cpu"),
    "a:b:c": ("a", "b:c", "cpu"),
    "a@b@c": ("a", None, "b@c"),
    "a@b:c": ("a", None, "b:c"),
    "a:b@c:d@e": ("a", "b", "c:d@e"),
    "my-backend.2:weights v1": ("my-backend.2", "weights v1", "cpu"),
}


@pytest.mark.parametrize("text", REFS)
def test_backend_ref_is_parsed(text: str) -> None:
    """The device follows the first @ and the artifact the first colon before it."""
    ref = BackendRef.parse(text)
    assert (ref.backend, ref.artifact, ref.device) == REFS[text]


@pytest.mark.parametrize("text", REFS)
def test_backend_ref_is_written_as_it_was_read(text: str) -> None:
    """What is written parses to the same again, and only the default device is left out."""
    ref = BackendRef.parse(text)
    assert str(ref) == text.removesuffix("@cpu")
    assert BackendRef.parse(str(ref)) == ref


@pytest.mark.parametrize("text", ["", ":", "@", ":int8", "@cpu", ":int8@cpu", "torch:", "torch@", "torch:@cpu", "torch:int8@"])  # fmt: skip
def test_half_a_backend_ref_is_refused(text: str) -> None:
    """A part that is announced and empty is the user's mistake, and the message shows a good one."""
    with pytest.raises(
        UsageError, match=r"BACKEND\[:ARTIFACT\]\[@DEVICE\], for example onnxruntime:int8@cpu"
    ) as caught:
        BackendRef.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "shape", "fits"),
    [
        ((None, 8, 8, 1), (1, 8, 8, 1), True),
        ((None, 8, 8, 1), (700, 8, 8, 1), True),
        ((None, 8, 8, 1), (1, 8, 8, 3), False),
        ((None, 8, 8, 1), (1, 1, 8, 8), False),
        ((None, 8, 8, 1), (8, 8, 1), False),
        ((None, 8, 8, 1), (1, 8, 8, 1, 1), False),
        ((2, 8), (2, 8), True),
        ((2, 8), (3, 8), False),
        ((None, None), (5, 6), True),
        ((None, None), (5,), False),
        ((), (), True),
        ((), (1,), False),
    ],
)
def test_tensor_spec_accepts_its_shape_only(
    declared: tuple[int | None, ...], shape: tuple[int, ...], fits: bool
) -> None:
    """None stands for any size of that dimension, and the number of dimensions is fixed."""
    assert TensorSpec(name="x", shape=declared, dtype="uint8").accepts(shape) is fits


BASE = {"height": 8, "width": 6, "channels": 1}


def test_preprocess_shape_is_height_width_channels() -> None:
    """The shape is in the order of the pixels' axes."""
    assert Preprocess(height=8, width=6, channels=3).shape == (8, 6, 3)


@pytest.mark.parametrize(
    "limit",
    [
        {"height": 1, "width": 1},
        {"height": 4096, "width": 4096},
        {"zero_point": 0, "background": 0},
        {"zero_point": 255, "background": 255},
        {"scale": 1e-30},
        {"scale": 999_999.0},
    ],
    ids=str,
)
def test_preprocess_takes_its_limits(limit: dict[str, Any]) -> None:
    """The smallest and the largest sizes and constants are good."""
    made = Preprocess(**{**BASE, **limit})
    assert {name: getattr(made, name) for name in limit} == limit


OUTSIDE = [
    {"height": 0}, {"width": 0}, {"height": -8}, {"height": 4097}, {"width": 4097}, {"zero_point": -1}, {"zero_point": 256},
    {"background": -1}, {"background": 256}, {"scale": 0.0}, {"scale": -1.0}, {"scale": 1e6}, {"scale": float("nan")},
    {"scale": float("inf")},
]  # fmt: skip


@pytest.mark.parametrize("bad", OUTSIDE, ids=str)
def test_preprocess_refuses_what_could_not_run(bad: dict[str, Any]) -> None:
    """A size or constant outside its range is refused when made and when a copy is changed."""
    with pytest.raises(ValueError, match=r"not within|pixel values|not a positive"):
        Preprocess(**{**BASE, **bad})
    with pytest.raises(ValueError, match=r"not within|pixel values|not a positive"):
        msgspec.structs.replace(Preprocess(**BASE), **bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"height": 0}, {"zero_point": 256}, {"scale": 0}, {"height": "8"}, {"height": 8.5}, {"height": True}, {"height": None},
        {"channels": 2}, {"channels": 4}, {"channels": "1"}, {"fit": "squeeze"}, {"scale": "1.0"}, {"size": 8}, {"Height": 8},
    ],
    ids=str,
)  # fmt: skip
def test_preprocess_from_json_is_strict(bad: dict[str, Any]) -> None:
    """JSON with a value out of range, of another type, or a field that is not known is refused."""
    assert msgspec.json.decode(json.dumps(BASE), type=Preprocess) == Preprocess(**BASE)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps({**BASE, **bad}), type=Preprocess)


@pytest.mark.parametrize("missing", BASE)
def test_preprocess_from_json_needs_the_size(missing: str) -> None:
    """Height, width and channels have no default."""
    with pytest.raises(msgspec.ValidationError, match=missing):
        msgspec.json.decode(
            json.dumps({name: value for name, value in BASE.items() if name != missing}), type=Preprocess
        )


SAMPLES: list[Frozen] = [
    TensorSpec(name="x", shape=(None, 3), dtype="uint8"),
    Preprocess(height=8, width=6, channels=3, fit="pad", background=0, scale=0.0123456789, zero_point=77),
    Tolerance(noise_multiple=4.0, recorded_share=0.1, max_drop=0.05, confidence=0.9),
    BackendRef(backend="onnxruntime", artifact="int8", device="cuda:0"),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_json_keeps_every_value(sample: Frozen) -> None:
    """A record read back from its JSON, indented or on one line, is equal to what was written."""
    for indent in (0, 2):
        assert msgspec.json.decode(to_json(sample, indent), type=type(sample)) == sample
    assert to_json(sample, 0).count(b"\n") == 0
    assert to_json(sample).endswith(b"}\n")
    assert json.loads(to_json(sample)) == json.loads(to_json(sample, 0))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_records_are_immutable_and_closed(sample: Frozen) -> None:
    """A record's fields cannot be changed, and neither its constructor nor its JSON takes others."""
    field = sample.__struct_fields__[0]
    with pytest.raises(AttributeError):
        setattr(sample, field, getattr(sample, field))
    with pytest.raises(TypeError):
        type(sample)(**{**msgspec.structs.asdict(sample), "unknown": 1})
    document = {**json.loads(to_json(sample)), "unknown": 1}
    with pytest.raises(msgspec.ValidationError, match="unknown"):
        msgspec.json.decode(json.dumps(document), type=type(sample))
    assert hash(sample) == hash(msgspec.structs.replace(sample))


def test_targets_are_those_of_the_type() -> None:
    """The list that the command line offers is the one that a manifest may hold."""
    decode = msgspec.json.Decoder(type=tuple[Any, ...]).decode
    assert decode(to_json(TARGETS)) == TARGETS
    assert set(TARGETS) == {"any", "x86-64", "x86-64-vnni", "arm64", "cuda", "tensorrt"}


def test_an_artifacts_bytes_are_held_to_their_hash(tmp_path: Path) -> None:
    """Bytes with the recorded hash are given out whole, and any others are refused."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert Artifact(name="a", format="onnx", path=path, sha256=digest).read_bytes() == b"weights"
    assert Artifact(name="a", format="onnx", path=path).read_bytes() == b"weights"
    path.write_bytes(b"weightz")
    with pytest.raises(DamagedError, match=r"model\.onnx"):
        Artifact(name="a", format="onnx", path=path, sha256=digest).read_bytes()


def test_an_artifact_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file, and a folder in its place, are BackendErrors that name the path."""
    for path in (tmp_path / "gone.onnx", tmp_path):
        with pytest.raises(BackendError, match=path.name):
            Artifact(name="a", format="onnx", path=path).read_bytes()
