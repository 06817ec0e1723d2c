"""Networks that a function of somebody else's makes: trained, exported and inspected, and each mistake in one line."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import load_file
from torch import nn

from edgecnn.cli import cli
from edgecnn.errors import CheckpointError, UsageError
from edgecnn.layers import ModelConfig
from edgecnn.nets import NetChoice, build_net, choose_net, function
from edgecnn.spec import Preprocess
from edgecnn.training.checkpoint import Header, load_checkpoint, save_checkpoint

DIGITS = Preprocess(height=8, width=8, channels=1)
GOOD = '''
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    """Activations and pooling as functions, and a layer used twice."""

    def __init__(self, channels, height, width, classes):
        super().__init__()
        self.first = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6 * (height // 2) * (width // 2), classes)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.twice(F.relu(self.twice(x))))
        return self.head(F.max_pool2d(x, 2).flatten(1))

def make(channels, height, width, classes):
    return Net(channels, height, width, classes)

def lazy(channels, height, width, classes):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))

def tied(channels, height, width, classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, classes))
    net[3].weight = net[1].weight
    return net

def positional(size, colours): ...
def raises(channels, height, width, classes): raise RuntimeError("first line\\nsecond line")
def leaves(channels, height, width, classes): raise SystemExit(3)
def nothing(channels, height, width, classes): return None
def a_list(**shape): return [nn.Linear(2, 2)]
def empty(**shape): return nn.Flatten()
def other_classes(channels, height, width, classes): return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes + 1))
def planes(channels, height, width, classes): return nn.Conv2d(channels, classes, 3)
def a_tuple(channels, height, width, classes): return nn.LSTM(width, classes)
def other_images(channels, height, width, classes): return nn.Sequential(nn.Flatten(), nn.Linear(7, classes))
number = 5
'''


def stand(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Stand in a folder, where modules are looked for that are looked for in the current one."""
    patch.chdir(folder)
    patch.setattr(sys, "path", [entry for entry in sys.path if entry])
    importlib.invalidate_caches()


def forget() -> None:
    """Forget what was imported, and that it was meant."""
    for name in [name for name in sys.modules if name.startswith("their_")]:
        del sys.modules[name]
    function._imported.clear()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand in a folder that holds modules of somebody's, and forget them afterwards."""
    (tmp_path / "their_net.py").write_text(GOOD)
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "nets.py").write_text(GOOD)
    (tmp_path / "their_syntax.py").write_text("def make(:\n")
    (tmp_path / "their_import.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "their_crash.py").write_text("1 / 0\n")
    (tmp_path / "their_exit.py").write_text("raise SystemExit('bye')\n")
    stand(tmp_path, monkeypatch)
    yield tmp_path
    forget()


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def build(name: str, preprocess: Preprocess = DIGITS) -> nn.Module:
    return build_net(choose_net(NetChoice(net=name), preprocess, 10), preprocess, 10)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["their_net:make", "their_package.nets:make", "their_net:lazy"])
def test_a_function_in_the_current_folder_makes_the_net(name: str) -> None:
    """It is called with the images' sizes and the classes, and its weights can be trained."""
    colour = Preprocess(height=12, width=10, channels=3)
    net = build(name, colour)
    assert net.training
    loss = net(torch.rand(4, 3, 12, 10)).square().sum()
    loss.backward()
    assert all(weight.grad is not None for weight in net.parameters())


MISTAKES = {
    "not_there:make": r"'not_there' cannot be imported \(ModuleNotFoundError: .*current folder",
    "their_package.gone:make": r"'their_package\.gone' cannot be imported \(ModuleNotFoundError",
    "their_import:make": r"cannot be imported \(ModuleNotFoundError: No module named 'a_package_that_is_not_there'\)",
    "their_syntax:make": r"cannot be imported \(SyntaxError: .*line 1",
    "their_crash:make": r"cannot be imported \(ZeroDivisionError: division by zero\)",
    "their_exit:make": r"cannot be imported \(SystemExit: bye\)",
    ".their_net:make": r"cannot be imported \(TypeError",
    ":make": r"'' cannot be imported \(ValueError",
    "their_net:": r"their_net\.py has no function ''",
    "their_net:gone": r"their_net\.py has no function 'gone'",
    "their_net:number": r"their_net\.py has no function 'number'",
    "their_net:positional": r"its call with channels, height, width and classes failed \(TypeError",
    "their_net:raises": r"failed \(RuntimeError: first line second line\)",
    "their_net:leaves": r"failed \(SystemExit: 3\)",
    "their_net:nothing": "returned NoneType, not a torch module",
    "their_net:a_list": "returned list, not a torch module",
    "their_net:empty": "returned Flatten without any parameters",
    "their_net:other_classes": r"gives \(2, 11\) for two images, not logits \(2, 10\)",
    "their_net:planes": r"gives \(2, 10, 6, 6\) for two images, not logits \(2, 10\)",
    "their_net:a_tuple": r"does not take images \(2, 1, 8, 8\)",
    "their_net:other_images": r"does not take images \(2, 1, 8, 8\) \(RuntimeError: mat1 and mat2",
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str) -> None:
    """Whatever their code does is one line that names the net and says what was wrong."""
    with pytest.raises(UsageError) as caught:
        build(name)
    message = str(caught.value)
    assert message.startswith(f"net {name}: ")
    assert re.search(MISTAKES[name], message), message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["not_there:make", "their_net:other_classes"])
def test_the_command_line_says_it_in_one_line(name: str, here: Path) -> None:
    """`train --net` leaves with 2 and that line, and writes no run."""
    result = invoke("train", "digits", "-o", here / "run", "--net", name, "--epochs", "1")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = [line for line in result.stderr.splitlines() if not re.match(r"digits: |augmentation: ", line)]
    assert f"net {name}: " in line
    assert not (here / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_a_net_of_somebody_elses_goes_all_the_way(here: Path) -> None:
    """It is trained, its layers are listed, it is exported, and without its function the run says what is missing."""
    run, bundle = here / "run", here / "bundle"
    result = invoke("train", "digits", "-o", run, "--net", "their_net:make", "--epochs", "1")
    assert result.exit_code == 0, result.stderr
    model = json.loads((run / "config.json").read_text())["model"]
    assert model == {"net": "their_net:make", "layers": [], "function": "their_net:make"}
    result = invoke("inspect", run, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    weights = load_file(run / "model.safetensors")
    trained = sum(w.size for name, w in weights.items() if "running" not in name and "tracked" not in name)
    assert found["net"] == "their_net:make"
    assert sum(row["parameters"] for row in found["layers"]) == found["parameters"] == trained
    assert sum(row["macs"] for row in found["layers"]) == found["MACs"] == 64 * 54 + 2 * 64 * 324 + 960
    assert [(row["name"], row["field"]) for row in found["layers"]] == [
        ("first Conv2d", 3), ("norm BatchNorm2d", 3), ("twice Conv2d", 5), ("twice Conv2d", 7), ("head Linear", None),
    ]  # fmt: skip
    assert "twice Conv2d" in invoke("inspect", run).stdout
    result = invoke("export", run, "-o", bundle, "--max-drop", "40")
    assert result.exit_code == 0, result.stderr
    parity = json.loads((bundle / "manifest.json").read_text())["evidence"]["parity"]
    assert {cell["computation"]["verdict"] for cell in parity["cells"]} == {"PASS"}
    (here / "their_net.py").unlink()
    del sys.modules["their_net"]
    shutil.rmtree(here / "__pycache__", ignore_errors=True)
    importlib.invalidate_caches()
    for command in (["inspect", run], ["export", run, "-o", here / "again"]):
        result = invoke(*command)
        assert (result.exit_code, result.stdout) == (2, "")
        line = result.stderr.splitlines()[-1]
        assert "the net cannot be built: net their_net:make: 'their_net' cannot be imported" in line
    assert invoke("inspect", bundle).exit_code == 0, "a bundle needs no function"


TRAP = (
    GOOD
    + """
from pathlib import Path
Path(__file__).with_name("sprung").touch()
"""
)


@pytest.fixture(scope="module")
def foreign_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a bundle of a function's net, as somebody else would have exported it."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "their_trap.py").write_text(GOOD)
    with pytest.MonkeyPatch.context() as patch:
        stand(folder, patch)
        patch.setattr("edgecnn.training.evaluate._write_pictures", lambda *_: None)
        for words in (
            ("train", "digits", "-o", "run", "--net", "their_trap:make", "--epochs", "1"),
            ("export", "run", "-o", "bundle", "--exporter", "onnx"),
        ):
            done = invoke(*words)
            assert done.exit_code == 0, done.stderr
    forget()
    return folder / "bundle"


BUILDING = {
    "parity": ["parity", "{bundle}", "-r", "torch"],
    "parity by default": ["parity", "{bundle}"],
    "predict": ["predict", "{bundle}", "{bundle}/goldens/000.png", "-b", "torch"],
    "bench": ["bench", "{bundle}", "-c", "torch", "--seconds", "0.1", "--cold-runs", "0"],
    "features": ["inspect", "{bundle}", "--features", "{bundle}/goldens/000.png", "-o", "page.html"],
    "features of a zip": ["inspect", "{zip}", "--features", "{bundle}/goldens/000.png", "-o", "page.html"],
    "teacher": ["train", "digits", "-o", "pupil", "--teacher", "{bundle}", "--epochs", "1", "--size", "n"],
    "teacher's file": ["train", "digits", "-o", "pupil", "--teacher", "{bundle}/model.safetensors", "--epochs", "1"],
}


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", BUILDING)
def test_a_bundle_does_not_get_code_run(
    name: str, foreign_bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever command would rebuild a bundle's net, its function is not imported, which is said in one line."""
    shutil.copytree(foreign_bundle, here / "bundle")
    shutil.make_archive(str(here / "packed"), "zip", here / "bundle")
    (here / "their_trap.py").write_text(TRAP)
    words = [word.format(bundle="bundle", zip="packed.zip") for word in BUILDING[name]]
    result = invoke(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    line = result.stderr.splitlines()[-1]
    assert "would import and run their_trap:make: set EDGECNN_TRUST_FUNCTIONS=1 if you trust both" in line
    assert not (here / "sprung").exists()
    assert "their_trap" not in sys.modules
    monkeypatch.setenv("EDGECNN_TRUST_FUNCTIONS", "yes")
    assert invoke(*words).exit_code == 2
    monkeypatch.setenv("EDGECNN_TRUST_FUNCTIONS", "1")
    trusted = invoke(*words)
    assert "would import" not in trusted.stderr
    assert (here / "sprung").exists(), "the trap is one"


@pytest.mark.slow
def test_a_bundles_onnx_files_need_no_trust(foreign_bundle: Path, here: Path) -> None:
    """What does not rebuild the net works on such a bundle as on any other, and imports nothing."""
    (here / "their_trap.py").write_text(TRAP)
    for words in (["predict", foreign_bundle, foreign_bundle / "goldens/000.png"], ["inspect", foreign_bundle]):
        assert invoke(*words).exit_code == 0
    assert invoke("parity", foreign_bundle, "-r", "onnxruntime:fp32", "--max-drop", "90").exit_code == 0
    assert not (here / "sprung").exists()


def header(name: str) -> Header:
    model = ModelConfig(net=name, function=name)
    return Header(model=model, preprocess=DIGITS, labels=tuple("0123456789"))


@pytest.mark.parametrize("name", ["their_net:make", "their_net:tied"])
def test_a_checkpoint_gives_its_net_back(name: str, here: Path) -> None:
    """The checkpoint of a function's net holds weights and the function's name, and gives the same logits again."""
    net = build(name).eval()
    save_checkpoint(here / "net", net, header(name))
    again = load_checkpoint(here / "net").build()
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(images), net(images))
    assert not again.training


def test_weights_of_a_function_that_has_changed_are_refused(here: Path) -> None:
    """Where the function makes another net by now, the weights are said not to fit, in one line."""
    save_checkpoint(here / "net", build("their_net:make"), header("their_net:make"))
    source = (here / "their_net.py").read_text()
    (here / "their_changed.py").write_text(source.replace("6", "7"))
    changed = load_checkpoint(here / "net")
    save_checkpoint(here / "net", build("their_net:make"), header("their_changed:make"))
    assert changed.build()
    with pytest.raises(CheckpointError, match=r"^the weights do not fit the net [^\n]*first\.weight[^\n]*$"):
        load_checkpoint(here / "net").build()
