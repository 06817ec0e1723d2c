"""Every mistake in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import edgecnn, invoke, one_line

MISTAKES: dict[str, tuple[list[str], str]] = {
    "misspelt command": (["predcit"], "predict"),
    "misspelt option": (["predict", "{bundle}", "{image}", "--bath", "3"], "--bath"),
    "missing bundle": (["predict", "{tmp}/nowhere", "{image}"], "{tmp}/nowhere"),
    "no images named": (["predict", "{bundle}"], "IMAGE"),
    "not a bundle": (["predict", "{tmp}", "{image}"], "{tmp}: holds no manifest.json"),
    "a file for a bundle": (["predict", "{image}", "{image}"], "is no bundle"),
    "unknown artifact": (["predict", "{bundle}", "{image}", "-b", "onnxruntime:int9"], "it has fp32, int8, checkpoint"),
    "unknown backend": (
        ["predict", "{bundle}", "{image}", "-b", "onxruntime"],
        "known: emulated, onnxruntime, onnxruntime-web, openvino, reference, remote, torch",
    ),
    "half a backend": (["predict", "{bundle}", "{image}", "-b", "onnxruntime:"], "BACKEND[:ARTIFACT][@DEVICE]"),
    "unknown device": (["predict", "{bundle}", "{image}", "-b", "onnxruntime@gpu"], "no device 'gpu'"),
    "wrong format": (["predict", "{bundle}", "{image}", "-b", "torch:int8"], "torch reads safetensors"),
    "top of nothing": (["predict", "{bundle}", "{image}", "--top", "0"], "--top"),
    "parity of nothing": (["parity", "{tmp}"], "holds no manifest.json"),
    "parity of an unknown artifact": (["parity", "{bundle}", "-c", "onnxruntime:nope"], "no artifact is called 'nope'"),
    "parity with an unknown reference": (["parity", "{bundle}", "-r", "troch"], "known: emulated, onnxruntime"),
    "parity with a bad budget": (["parity", "{bundle}", "--max-drop", "lots"], "'lots' is not a number"),
    "parity with no budget": (["parity", "{bundle}", "--max-drop", "0"], "between 0 and 100"),
    "parity with NaN for a budget": (["parity", "{bundle}", "--max-drop", "nan"], "between 0 and 100"),
    "parity on missing data": (["parity", "{bundle}", "--data", "{tmp}/gone"], "gone: is not there"),
    "bench of nothing": (["bench", "{tmp}"], "holds no manifest.json"),
    "bench of one candidate twice": (["bench", "{bundle}", "-c", "torch", "-c", "torch"], "different candidates"),
    "bench on a missing device": (["bench", "{bundle}", "-c", "onnxruntime@npu"], "no device 'npu'"),
    "bench for no time": (["bench", "{bundle}", "--seconds", "0"], "--seconds"),
    "inspect of nothing": (["inspect", "{tmp}"], "neither a run folder, nor a bundle, nor an .onnx file"),
    "inspect of what is not there": (["inspect", "{tmp}/gone.onnx"], "gone.onnx"),
    "export of nothing": (["export", "{tmp}", "-o", "{tmp}/out"], "config.json is missing"),
    "export to no known target": (["export", "{run}", "-o", "{tmp}/out", "--target", "sparc"], "sparc"),
    "train on nothing": (["train", "{tmp}/gone", "-o", "{tmp}/out"], "gone: is not there; give 'digits'"),
    "train on an empty folder": (["train", "{tmp}", "-o", "{tmp}/out"], "no class folders"),
    "train into a file": (["train", "digits", "-o", "{image}"], "{image}"),
    "train without a place": (["train", "digits"], "--out"),
    "train at no rate": (
        ["train", "digits", "-o", "{tmp}/out", "--lr", "fast"],
        "'fast' is neither a rate above 0 nor auto",
    ),
    "train at a rate of nothing": (["train", "digits", "-o", "{tmp}/out", "--lr", "0"], "neither a rate above 0"),
    "train with an unknown part": (
        ["train", "digits", "-o", "{tmp}/out", "--augment", "blur"],
        "'blur' is neither none",
    ),
    "train with widths in words": (
        ["train", "digits", "-o", "{tmp}/out", "--widths", "a,b"],
        "not a list such as 16,32",
    ),
    "train in a size there is not": (["train", "digits", "-o", "{tmp}/out", "--size", "64"], "--size"),
    "train for no epochs": (["train", "digits", "-o", "{tmp}/out", "--epochs", "0"], "--epochs"),
    "completion for no shell": (["completion", "tcsh"], "tcsh"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_one_line(mistake: str, bundle_folder: Path, run_folder: Path, tmp_path: Path) -> None:
    """What was wrong is said in one line on stderr, with nothing on stdout, nothing written and exit code 2."""
    places = {
        "bundle": bundle_folder,
        "run": run_folder,
        "image": bundle_folder / "goldens" / "000.png",
        "tmp": tmp_path,
    }
    words, told = MISTAKES[mistake]
    line = one_line(invoke(*(word.format(**places) for word in words)))
    assert told.format(**places) in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["predict", "{bundle}", "{tmp}/gone.png"], ["predcit"], ["inspect", "{tmp}"]])
def test_a_real_process_prints_no_traceback(arguments: list[str], bundle_folder: Path, tmp_path: Path) -> None:
    """The installed command itself leaves with 2 and without a traceback."""
    done = edgecnn(*(word.format(bundle=bundle_folder, tmp=tmp_path) for word in arguments))
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr
    assert done.stderr
