"""Run folders and checkpoints: what is read back, and what of it is refused."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from edgecnn.data import open_data
from edgecnn.errors import CheckpointError, DataError
from edgecnn.nets import Deployed, build_net
from edgecnn.nets.compact import compact_config
from edgecnn.runs import CHECKPOINT, CONFIG, METRICS, open_run_data, read_run
from edgecnn.spec import Preprocess
from edgecnn.training.checkpoint import Header, load_checkpoint, parse_checkpoint, save_checkpoint

HEADER = Header(
    model=compact_config((4, 6), depth=1),
    preprocess=Preprocess(height=8, width=8, channels=1, scale=0.0078125, zero_point=77),
    labels=("ant", "bee", "cät"),
)
PLAIN: dict[str, Any] = msgspec.to_builtins(HEADER)


def net(seed: int = 0) -> torch.nn.Module:
    """Build a small network whose weights and batch statistics are all different."""
    torch.manual_seed(seed)
    built = build_net(HEADER.model, HEADER.preprocess, len(HEADER.labels))
    built.load_state_dict(
        {name: torch.rand_like(tensor.float()).to(tensor.dtype) + 1 for name, tensor in built.state_dict().items()}
    )
    return built.eval()


def arrays() -> dict[str, Any]:
    """Return the small network's weights as numpy arrays."""
    return {name: tensor.numpy().copy() for name, tensor in net().state_dict().items()}


def safetensors(tensors: dict[str, Any], metadata: Any) -> bytes:
    """Lay out a safetensors file by hand (8 bytes of length, a JSON header, the data)."""
    kinds = {"float32": "F32", "float64": "F64", "int64": "I64"}
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    body = b""
    for name, array in tensors.items():
        data = array.tobytes()
        place = [len(body), len(body) + len(data)]
        header[name] = {"dtype": kinds[str(array.dtype)], "shape": list(array.shape), "data_offsets": place}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def checkpoint(**changes: Any) -> bytes:
    """Lay out a checkpoint by hand; `changes` replace tensors, or drop them where None."""
    tensors = {name.replace("-", "."): array for name, array in {**arrays(), **changes}.items() if array is not None}
    return safetensors(tensors, {"edgecnn": json.dumps(PLAIN)})


# Checkpoints


def test_a_checkpoint_gives_back_its_network(tmp_path: Path) -> None:
    """What is saved is read back, weights, configuration and labels, and the network gives the same answers."""
    save_checkpoint(tmp_path / CHECKPOINT, net(), HEADER)
    loaded = load_checkpoint(tmp_path / CHECKPOINT)
    assert (loaded.model, loaded.preprocess, loaded.labels) == (HEADER.model, HEADER.preprocess, HEADER.labels)
    assert {name: tensor.numpy().tolist() for name, tensor in loaded.weights.items()} == {
        name: array.tolist() for name, array in arrays().items()
    }
    image = torch.randint(0, 256, (3, 8, 8, 1), dtype=torch.uint8)
    rebuilt = loaded.build()
    assert not rebuilt.training
    with torch.inference_mode():
        want, got = (Deployed(one, HEADER.preprocess)(image)[0] for one in (net(), rebuilt))
    assert torch.equal(want, got)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_a_checkpoint_laid_out_by_hand_is_read() -> None:
    """A checkpoint is plain safetensors with the header as JSON under the key `edgecnn`."""
    loaded = parse_checkpoint(checkpoint(), "there")
    assert loaded.labels == HEADER.labels
    assert all(np.array_equal(tensor.numpy(), arrays()[name]) for name, tensor in loaded.build().state_dict().items())


def test_a_saved_checkpoint_is_plain_safetensors(tmp_path: Path) -> None:
    """The file that is written lies in memory as the safetensors format says, readable without the library."""
    save_checkpoint(tmp_path / CHECKPOINT, net(), HEADER)
    data = (tmp_path / CHECKPOINT).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    assert json.loads(header.pop("__metadata__")["edgecnn"]) == json.loads(json.dumps(PLAIN))
    assert set(header) == set(arrays())
    start, end = header["head.weight"]["data_offsets"]
    weight = np.frombuffer(data[8 + length :][start:end], dtype="<f4").reshape(header["head.weight"]["shape"])
    np.testing.assert_array_equal(weight, arrays()["head.weight"])


def test_a_run_folder_stands_for_its_checkpoint(run_folder: Path) -> None:
    """A run folder and the file in it give the same checkpoint, which fits the run's configuration."""
    by_folder, by_file = load_checkpoint(run_folder), load_checkpoint(run_folder / CHECKPOINT)
    config, _ = read_run(run_folder)
    assert by_folder.labels == by_file.labels == config.labels
    assert by_folder.model == config.model
    assert by_folder.preprocess == config.preprocess
    assert all(torch.equal(by_folder.weights[name], tensor) for name, tensor in by_file.weights.items())


def test_a_new_checkpoint_replaces_the_old(tmp_path: Path) -> None:
    """A checkpoint that is saved again holds the new weights alone."""
    save_checkpoint(tmp_path / CHECKPOINT, net(0), HEADER)
    save_checkpoint(tmp_path / CHECKPOINT, net(1), HEADER)
    assert torch.equal(load_checkpoint(tmp_path).weights["head.weight"], net(1).state_dict()["head.weight"])
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


@pytest.mark.parametrize("name", ["absent", "folder"])
def test_a_missing_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    """A path to nothing, or to a folder without a checkpoint, is refused with what to give."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        CheckpointError, match=rf"{name}.*: cannot be read .*; give a folder that `edgecnn train` wrote"
    ):
        load_checkpoint(tmp_path / name)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    """A checkpoint that ends too early, anywhere, or goes on too long, is refused by its path."""
    data = checkpoint()
    file = tmp_path / CHECKPOINT
    for size in [*range(0, 64, 7), *range(64, len(data), 211), len(data) - 1]:
        file.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=rf"{CHECKPOINT}: not a checkpoint of edgecnn, or damaged"):
            load_checkpoint(file)
    file.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError, match="or damaged"):
        load_checkpoint(file)


def test_a_damaged_header_is_refused_or_harmless(tmp_path: Path) -> None:
    """Whichever byte of the header is damaged, the checkpoint is refused or it still builds the same kind of network."""
    data = checkpoint()
    length = 8 + struct.unpack("<Q", data[:8])[0]
    refused = 0
    for place in range(0, length, 3):
        damaged = data[:place] + bytes([data[place] ^ 0x11]) + data[place + 1 :]
        try:
            loaded = parse_checkpoint(damaged, "there")
            image = torch.zeros(1, *loaded.preprocess.shape, dtype=torch.uint8)
            assert Deployed(loaded.build(), loaded.preprocess)(image)[0].shape == (1, len(loaded.labels))
        except CheckpointError:
            refused += 1
    assert refused > length / 3 / 2


FOREIGN: dict[str, Any] = {
    "no metadata": None,
    "metadata of others": {"format": "pt"},
    "no JSON": {"edgecnn": "hello"},
    "another JSON": {"edgecnn": "[1, 2]"},
    "an empty header": {"edgecnn": "{}"},
    "no labels": {"edgecnn": json.dumps({key: value for key, value in PLAIN.items() if key != "labels"})},
    "an unknown field": {"edgecnn": json.dumps({**PLAIN, "surprise": 1})},
    "labels of numbers": {"edgecnn": json.dumps({**PLAIN, "labels": [1, 2, 3]})},
    "a net of nothing": {"edgecnn": json.dumps({**PLAIN, "model": {"net": "resnet"}})},
    "a net made in two ways": {"edgecnn": json.dumps({**PLAIN, "model": {**PLAIN["model"], "function": "a:b"}})},
    "two channels": {"edgecnn": json.dumps({**PLAIN, "preprocess": {"height": 8, "width": 8, "channels": 2}})},
    "no height": {"edgecnn": json.dumps({**PLAIN, "preprocess": {"height": 0, "width": 8, "channels": 1}})},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_safetensors_of_others_are_refused(tmp_path: Path, name: str) -> None:
    """A whole safetensors file without edgecnn's header, or with one that makes no sense, is refused by its path."""
    (tmp_path / CHECKPOINT).write_bytes(safetensors(arrays(), FOREIGN[name]))
    with pytest.raises(CheckpointError, match=rf"{CHECKPOINT}: not a checkpoint of edgecnn, or damaged \("):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + b"\0" * 99, b"hello world, this is text", b"\xff" * 64, struct.pack("<Q", 2) + b"[]"], ids=["empty", "torch", "text", "ones", "list"])  # fmt: skip
def test_files_that_are_no_safetensors_are_refused(data: bytes) -> None:
    """A file of another kind, such as torch's own zip, is refused."""
    with pytest.raises(CheckpointError, match="there: not a checkpoint of edgecnn, or damaged"):
        parse_checkpoint(data, "there")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["head.weight", "head.bias", "layers.0.1.running_var"])
def test_weights_that_are_not_finite_are_refused(name: str, value: float) -> None:
    """A single weight or batch statistic that is not finite is refused by its name."""
    array = arrays()[name]
    array.flat[-1] = value
    with pytest.raises(CheckpointError, match=rf"weights that are not finite in {name}: train again"):
        parse_checkpoint(checkpoint(**{name: array}), "there").build()


MISFITS: dict[str, dict[str, Any]] = {
    "one missing": {"head.weight": None},
    "one too many": {"head.extra": np.zeros(3, dtype=np.float32)},
    "another shape": {"head.weight": np.zeros((3, 7), dtype=np.float32)},
    "transposed": {"head.weight": np.zeros((6, 3), dtype=np.float32)},
    "four classes": {"head.weight": np.zeros((4, 6), dtype=np.float32), "head.bias": np.zeros(4, dtype=np.float32)},
    "none at all": dict.fromkeys(arrays()),
}


@pytest.mark.parametrize("name", MISFITS)
def test_weights_that_do_not_fit_are_refused(name: str) -> None:
    """Weights that are missing, too many, or of another shape than the header's network has are refused."""
    loaded = parse_checkpoint(checkpoint(**MISFITS[name]), "there")
    with pytest.raises(CheckpointError, match=r"the weights do not fit the net \("):
        loaded.build()


def _compact(*widths: int, depth: int = 1) -> dict[str, Any]:
    model: dict[str, Any] = msgspec.to_builtins(compact_config(widths, depth=depth))
    return model


LAYERS = _compact(4, 6)["layers"]
ANOTHER: dict[str, dict[str, Any]] = {
    "other filters": _compact(4, 7),
    "one width": _compact(4),
    "three widths": _compact(4, 6, 8),
    "depth 2": _compact(4, 6, depth=2),
    "more halvings than pixels": _compact(4, 6, 6, 6, 6),
    "a larger kernel": _compact(4, 6) | {"layers": [{**LAYERS[0], "kernel": 5}, *LAYERS[1:]]},
    "no norm": _compact(4, 6) | {"layers": [{**LAYERS[0], "norm": False}, *LAYERS[1:]]},
    "a linear layer more": _compact(4, 6) | {"layers": [*LAYERS, {"kind": "linear", "units": 6}]},
    "a function that is gone": {"net": "gone:make", "function": "edgecnn_gone:make"},
}


@pytest.mark.parametrize("name", ANOTHER)
def test_headers_of_another_network_are_refused(name: str) -> None:
    """A header that describes another network than the weights are of, or one that cannot be built, is refused."""
    header = {**PLAIN, "model": ANOTHER[name]}
    loaded = parse_checkpoint(safetensors(arrays(), {"edgecnn": json.dumps(header)}), "there", of_bundle=False)
    with pytest.raises(CheckpointError, match=r"^the (weights do not fit the net|net cannot be built)[^\n]*$"):
        loaded.build()


def test_the_same_header_written_out_again_builds() -> None:
    """Without a change the header of the tests above builds, so that what fails there fails by its change."""
    header = {**PLAIN, "model": _compact(4, 6)}
    assert parse_checkpoint(safetensors(arrays(), {"edgecnn": json.dumps(header)}), "there").build()


BEYOND: dict[str, Any] = {
    "no layers": [],
    "filters below zero": [{**LAYERS[0], "filters": -4}],
    "no filters": [{**LAYERS[0], "filters": 0}],
    "10**15 filters": [{**LAYERS[0], "filters": 10**15}],
    "a kernel of 65": [{**LAYERS[0], "kernel": 65}],
    "an unknown kind": [{**LAYERS[0], "kind": "attention"}],
    "no kind": [{"filters": 4}],
    "everything dropped": [LAYERS[0], {"kind": "dropout", "rate": 1.0}],
    "another activation": [{**LAYERS[0], "activation": "gelu"}],
}


@pytest.mark.parametrize("name", BEYOND)
def test_headers_that_describe_no_network_are_refused(name: str) -> None:
    """A header whose layers lie outside of what layers can be is refused when it is read."""
    header = {**PLAIN, "model": {"net": "compact", "layers": BEYOND[name]}}
    with pytest.raises(CheckpointError, match="not a checkpoint of edgecnn, or damaged"):
        parse_checkpoint(safetensors(arrays(), {"edgecnn": json.dumps(header)}), "there")


def test_a_header_of_a_huge_network_is_refused_before_it_is_built() -> None:
    """Layers each within their range, but of billions of weights together, are refused and not allocated."""
    wide = {**LAYERS[0], "filters": 65536}
    header = {**PLAIN, "model": {"net": "wide", "layers": [wide, wide]}}
    loaded = parse_checkpoint(safetensors(arrays(), {"edgecnn": json.dumps(header)}), "there")
    with pytest.raises(CheckpointError, match="50,000,000 is the most"):
        loaded.build()


# Runs


@pytest.fixture
def run_copy(run_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the run folder that a test may damage."""
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_says_what_was_decided_and_what_came_of_it(run_folder: Path) -> None:
    """Configuration and metrics are read back, and agree with the data and with each other."""
    config, metrics = read_run(run_folder)
    digits = open_data("digits")
    assert config.data == "digits"
    assert config.labels == digits.labels
    assert config.model == compact_config((8, 16), depth=1)
    assert config.test_sha256 == digits.test.sha256()
    assert config.preprocess.zero_point == round(digits.train.pixels.astype(np.float64).mean())
    assert config.preprocess.scale == pytest.approx(1 / digits.train.pixels.astype(np.float64).std(), rel=1e-6)
    assert metrics.images == {"train": len(digits.train), "val": len(digits.val), "test": len(digits.test)}
    table = np.array(metrics.confusion)
    np.testing.assert_array_equal(table.sum(axis=1), np.bincount(digits.test.labels))
    assert metrics.test_accuracy.value == np.trace(table) / len(digits.test)
    assert metrics.parameters == sum(
        tensor.numel()
        for name, tensor in load_checkpoint(run_folder).weights.items()
        if "running" not in name and "tracked" not in name
    )
    assert [epoch["number"] for epoch in metrics.history] == list(range(1, 13))
    assert metrics.history[metrics.best_epoch - 1]["best"]


@pytest.mark.parametrize("name", [CONFIG, METRICS])
def test_an_unfinished_run_is_refused(run_copy: Path, name: str) -> None:
    """A run folder without its configuration or metrics is refused with the name of what is missing."""
    (run_copy / name).unlink()
    with pytest.raises(
        CheckpointError, match=rf"run: {name} is missing; give a folder in which `edgecnn train` has finished"
    ):
        read_run(run_copy)


def test_a_path_that_is_no_run_is_refused(tmp_path: Path) -> None:
    """A path to nothing, to an empty folder or to a file is refused as no finished run."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("absent", "empty", "file"):
        with pytest.raises(CheckpointError, match=rf"{name}: {CONFIG} is missing"):
            read_run(tmp_path / name)


BREAKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "not a record": lambda document: [document],
    "unknown field": lambda document: {**document, "surprise": 1},
    "missing field": lambda document: dict(list(document.items())[1:]),
    "wrong type": lambda document: dict.fromkeys(document, 5),
}


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("name", [CONFIG, METRICS])
def test_a_run_of_another_schema_is_refused(run_copy: Path, name: str, how: str) -> None:
    """A configuration or metrics with a field unknown, missing or of another type is refused by the run's path."""
    (run_copy / name).write_text(json.dumps(BREAKS[how](json.loads((run_copy / name).read_bytes()))))
    with pytest.raises(CheckpointError, match="run: its configuration or metrics cannot be read"):
        read_run(run_copy)


@pytest.mark.parametrize("name", [CONFIG, METRICS])
def test_a_damaged_run_is_refused(run_copy: Path, name: str) -> None:
    """A configuration or metrics that is cut, empty or not text is refused."""
    data = (run_copy / name).read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"\xff\xfe\0", data + b"}"):
        (run_copy / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_run(run_copy)


def test_a_run_opens_its_own_data(run_folder: Path) -> None:
    """The data of a run opens with the same test split, pixel for pixel."""
    config, _ = read_run(run_folder)
    assert open_run_data(config).test.sha256() == open_data("digits").test.sha256()


def test_a_run_takes_its_data_from_elsewhere(run_folder: Path, tmp_path: Path) -> None:
    """The same data at another place is accepted for a run, and other data there is refused by its name."""
    config, _ = read_run(run_folder)
    digits = open_data("digits")
    parts = {"train": digits.train, "val": digits.val, "test": digits.test}
    stored: dict[str, Any] = {f"{name}_images": part.pixels for name, part in parts.items()}
    stored |= {f"{name}_labels": part.labels for name, part in parts.items()}
    np.savez(tmp_path / "same.npz", **stored)
    assert open_run_data(config, str(tmp_path / "same.npz")).test.sha256() == config.test_sha256
    stored["test_images"] = stored["test_images"].copy()
    stored["test_images"][0, 0, 0] ^= 1
    np.savez(tmp_path / "other.npz", **stored)
    with pytest.raises(DataError, match=r"other\.npz: not the data this run was trained on \(its test split differs\)"):
        open_run_data(config, str(tmp_path / "other.npz"))


@pytest.mark.parametrize("change", [{"seed": 1}, {"test": 0.3}])
def test_another_split_of_the_data_is_refused(run_folder: Path, change: dict[str, Any]) -> None:
    """The run's data under another seed or share has another test split, and is refused."""
    config, _ = read_run(run_folder)
    options = msgspec.structs.replace(config.data_options, **change)
    with pytest.raises(DataError, match="digits: not the data this run was trained on"):
        open_run_data(msgspec.structs.replace(config, data_options=options))


def test_data_with_other_labels_is_refused(run_folder: Path) -> None:
    """Data whose classes have other names than the run's is refused, although its pixels are the same."""
    config, _ = read_run(run_folder)
    renamed = msgspec.structs.replace(config, labels=tuple(f"digit {label}" for label in config.labels))
    with pytest.raises(DataError, match="not the data this run was trained on"):
        open_run_data(renamed)


def test_lost_data_is_named(run_folder: Path, tmp_path: Path) -> None:
    """Data that is not where the run found it is refused with that place."""
    config, _ = read_run(run_folder)
    with pytest.raises(DataError, match="gone: is not there"):
        open_run_data(config, str(tmp_path / "gone"))
