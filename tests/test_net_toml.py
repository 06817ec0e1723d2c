"""Networks in TOML: what is read, and that whatever is wrong is told with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from edgecnn.cli import cli
from edgecnn.errors import UsageError
from edgecnn.layers import Conv, Depthwise, Dropout, Layer, Linear, Pool, Residual
from edgecnn.nets import NetChoice, build_net, choose_net
from edgecnn.nets.toml import read_layers
from edgecnn.spec import Preprocess

EXAMPLE = Path(__file__).resolve().parents[1] / "docs" / "net.toml"
SMALL = Preprocess(height=8, width=8, channels=1)
EVERY = """
# comment with [[layer]] and [[layer.layers]] in it

[[layer]]
kind = "conv"
filters = 6
kernel = 5
stride = 1
padding = 2
norm = false
activation = "relu6"

  [[ layer ]]   # written otherwise
kind = "depthwise"
activation = "none"

[[layer]]
kind = "residual"
activation = "relu"
# [[layer]]
[[layer.layers]]
kind = "conv"
filters = 8
stride = 2

[[layer.layers]]
kind = "depthwise"

[[layer.layers]]
kind = "pool"
kernel = 3
stride = 1
padding = 1

[[layer]]
kind = "pool"
pooling = "average"
kernel = "all"

[[layer]]
kind = "linear"
units = 7

[[layer]]
kind = "dropout"
rate = 0.5
"""
WANTED: tuple[Layer, ...] = (
    Conv(filters=6, kernel=5, padding=2, norm=False, activation="relu6"),
    Depthwise(activation="none"),
    Residual(layers=(Conv(filters=8, stride=2), Depthwise(), Pool(kernel=3, stride=1, padding=1)), activation="relu"),
    Pool(pooling="average", kernel="all"),
    Linear(units=7),
    Dropout(rate=0.5),
)


def written(folder: Path, text: str) -> Path:
    path = folder / "my.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_kind_is_read(tmp_path: Path) -> None:
    """A file with every kind of layer gives those layers, and a net of its name that can be built."""
    path = written(tmp_path, EVERY)
    assert read_layers(path, (1, 8, 8), 10) == WANTED
    config = choose_net(NetChoice(net=str(path)), SMALL, 10)
    assert (config.net, config.layers, config.function) == ("my", WANTED, None)
    assert build_net(config, SMALL, 10).eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_inline_tables_are_read_too(tmp_path: Path) -> None:
    """TOML's other way to write a list of tables means the same."""
    text = 'layer = [\n  {kind = "conv", filters = 3},\n  {kind = "residual", layers = [{kind = "depthwise"}]},\n]\n'
    assert read_layers(written(tmp_path, text), (1, 8, 8), 10) == (Conv(filters=3), Residual(layers=(Depthwise(),)))


@pytest.mark.parametrize("size", [8, 28, 96])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_documented_example_fits(size: int, channels: int) -> None:
    """The file in docs/ has every kind of layer, and fits images of any usual size."""
    preprocess = Preprocess(height=size, width=size, channels=3 if channels == 3 else 1)
    config = choose_net(NetChoice(net=str(EXAMPLE)), preprocess, 10)
    assert {type(layer) for layer in config.layers} == {Conv, Depthwise, Pool, Linear, Dropout, Residual}
    assert build_net(config, preprocess, 10).eval()(torch.zeros(1, channels, size, size)).shape == (1, 10)


def test_the_documented_example_tells_the_defaults() -> None:
    """Every value that the example gives behind a key is what the key has when it is left out, or is said to differ."""
    layers = {type(layer): layer for layer in reversed(read_layers(EXAMPLE, (3, 32, 32), 10))}
    assert layers[Conv] == Conv(filters=16)
    assert layers[Pool] == Pool()
    assert layers[Depthwise] == Depthwise()
    assert layers[Linear] == Linear(units=32)
    assert layers[Dropout] == Dropout()


CONV = '[[layer]]\nkind = "conv"\nfilters = 4\n'
BLANK = "\n# a comment\n\n"
RESIDUAL = '[[layer]]\nkind = "residual"\n\n'
INNER = '[[layer.layers]]\nkind = "conv"\nfilters = 4\n'
# What is in the file, the line that is at fault, and what is said of it.
FAULTS: dict[str, tuple[str, int, str]] = {
    "an open string": (CONV + BLANK + '[[layer]]\nkind = "conv\n', 8, "not valid TOML"),
    "no value": (CONV + "kernel =\n", 4, "not valid TOML: Invalid value"),
    "an open header": (BLANK + "[[layer]\n", 4, "not valid TOML"),
    "an end too early": (CONV + 'activation = "relu', 4, "not valid TOML"),
    "a key twice": (CONV + "filters = 5\n", 4, "not valid TOML: Cannot overwrite"),
    "a number of 5000 digits": (CONV + f"kernel = {'9' * 5000}\n", 4, "not valid TOML"),
    "an unknown kind": (CONV + BLANK + '[[layer]]\nkind = "attention"\n', 8, "kind 'attention'; there are conv, depthwise"),
    "no kind": (CONV + BLANK + "[[layer]]\nfilters = 3\n", 7, "no kind; there are conv"),
    "a list as a kind": ('[[layer]]\nkind = ["conv"]\n', 2, "kind ['conv']"),
    "an unknown key": (CONV + "\nkernal = 5\n", 5, "unknown field `kernal`; a conv has filters, kernel, stride"),
    "another kind's key": (BLANK + '[[layer]]\nkind = "pool"\nfilters = 3\n', 6, "unknown field `filters`; a pool has pooling"),
    "a table inside a layer": (CONV + "[layer.more]\nx = 1\n", 1, "unknown field `more`"),
    "a word for a number": (CONV + '# filters = 1\nkernel = "three"\n', 5, "kernel: Expected `int`, got `str`"),
    "a fraction of a pixel": (CONV + "stride = 1.5\n", 4, "stride: Expected `int`, got `float`"),
    "yes for true": (CONV + "norm = 1\n", 4, "norm: Expected `bool`, got `int`"),
    "true for a number": ('[[layer]]\nkind = "linear"\nunits = true\n', 3, "units: Expected `int`, got `bool`"),
    "an unknown activation": (CONV + 'activation = "gelu"\n', 4, "activation: Invalid enum value 'gelu'; it is relu, relu6 or none"),
    "an unknown padding": (CONV + 'padding = "valid"\n', 4, 'padding: Invalid enum value \'valid\'; it is a number or "same"'),
    "no filters at all": ('[[layer]]\nkind = "conv"\nfilters = 0\n', 3, "filters: Expected `int` >= 1"),
    "10**9 filters": ('[[layer]]\nkind = "conv"\nfilters = 1_000_000_000\n', 3, "filters: Expected `int` <= 65536"),
    "10**30 units": (f'[[layer]]\nkind = "linear"\nunits = {10**30}\n', 3, "units: Expected `int` <= 65536"),
    "a rate of 1": ('[[layer]]\nkind = "dropout"\nrate = 1.0\n', 3, "rate: Expected `float` < 1.0"),
    "a rate that is no number": ('[[layer]]\nkind = "dropout"\nrate = nan\n', 3, "rate: Expected `float`"),
    "filters missing": (CONV + BLANK + '[[layer]]\nkind = "conv"\n', 7, "missing required field `filters`"),
    "a residual of nothing": (CONV + '[[layer]]\nkind = "residual"\n', 4, "missing required field `layers`"),
    "a residual of an empty list": (CONV + '[[layer]]\nkind = "residual"\nlayers = []\n', 4, "residual holds no layers"),
    "a residual of a number": ('[[layer]]\nkind = "residual"\nlayers = [5]\n', 3, "a layer is a table"),
    "a pool that does not fit": ((BLANK + '[[layer]]\nkind = "pool"\n') * 4, 19, "max pool 2x2 does not fit: what comes in is 1x1, after strides of 8 in all (for images of 8x8)"),
    "a kernel that does not fit": (CONV + "kernel = 9\npadding = 0\n", 1, "conv 9x9 4 relu does not fit: what comes in is 8x8"),
    "a conv after linear": ('[[layer]]\nkind = "linear"\nunits = 5\n' + BLANK + CONV, 7, "needs planes, but a linear layer before it has flattened them"),
    "halves that do not add": (CONV + BLANK + RESIDUAL + INNER + "padding = 0\n", 7, "residual: its layers make 4x6x6 of 4x8x8, and no stride"),
    "linear in a residual": (RESIDUAL + INNER + BLANK + '[[layer.layers]]\nkind = "linear"\nunits = 4\n', 11, "kind 'linear'; there are conv, depthwise, pool inside a residual"),
    "a residual in a residual": (RESIDUAL + '[[layer.layers]]\nkind = "residual"\n', 5, "kind 'residual'; there are conv"),
    "a wrong key in a residual": (CONV + RESIDUAL + INNER + BLANK + INNER + "kernel = 0\n", 16, "kernel: Expected `int` >= 1"),
    "a pool that does not fit in a residual": (RESIDUAL + INNER + ('[[layer.layers]]\nkind = "pool"\nkernel = 6\n') * 2, 10, "max pool 6x6 does not fit"),
    "an empty file": ("", 1, "there are no layers; describe each layer in a table [[layer]]"),
    "only a comment": (BLANK, 1, "there are no layers"),
    "one table": (BLANK + '[layer]\nkind = "conv"\nfilters = 4\n', 4, "'layer' is not a list of tables here; describe each layer in a table [[layer]]"),
    "a residual's layers alone": (INNER, 1, "'layer' is not a list of tables here"),
    "a name before the layers": ("# mine\nname = 'mine'\n" + CONV, 2, "'name' is not known here"),
    "another table": (CONV + BLANK + "[training]\nepochs = 3\n", 7, "'training' is not known here"),
    "layers instead of layer": ('\n[[layers]]\nkind = "conv"\n', 2, "'layers' is not known here"),
    "too many parameters": ((CONV + BLANK).replace("= 4", "= 60000") * 2, 7, "has 32,400,780,000 parameters, and 50,000,000 is the most"),
    "too many values": (CONV + BLANK + CONV.replace("= 4", "= 65536") + "kernel = 1\npadding = 20\nnorm = false\n", 7, "values come out of this, and 50,000,000 is the most"),
    "too many for the classes": ('[[layer]]\nkind = "linear"\nunits = 65536\n' + BLANK + '[[layer]]\nkind = "linear"\nunits = 1000\n', 7, "50,000,000 is the most"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_with_its_line(name: str, tmp_path: Path) -> None:
    """Whatever is wrong is one line that begins with file and line number and says why."""
    text, line, told = FAULTS[name]
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_layers(path, (1, 8, 8), 10)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: ")
    assert told in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "name", ["an unknown key", "a pool that does not fit", "linear in a residual", "another table"]
)
def test_lines_do_not_shift(name: str, tmp_path: Path) -> None:
    """Comments and blank lines put before every line move the number by exactly as many lines."""
    text, line, _ = FAULTS[name]
    spaced = "".join(f"# [[layer]] {number}\n\n{one}\n" for number, one in enumerate(text.splitlines()))
    with pytest.raises(UsageError, match=rf"my\.toml, line {3 * line}: "):
        read_layers(written(tmp_path, spaced), (1, 8, 8), 10)


def test_endless_nesting_is_an_error(tmp_path: Path) -> None:
    """Thousands of brackets are refused by one line and not by a crash."""
    with pytest.raises(UsageError, match=r"my\.toml: not valid TOML: nested too deeply"):
        read_layers(written(tmp_path, "a = " + "[" * 100_000), (1, 8, 8), 10)


def run(path: Path, out: Path) -> str:
    """Train with a net by the command line and give the one line with which that is refused."""
    result = CliRunner().invoke(cli, ["train", "digits", "-o", str(out), "--net", str(path), "--epochs", "1"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert not out.exists()
    lines = [line for line in result.stderr.splitlines() if not re.match(r"digits: |augmentation: ", line)]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize("name", ["no value", "an unknown key", "a pool that does not fit", "an empty file", "10**9 filters", "too many parameters"])  # fmt: skip
def test_the_command_line_says_it_in_one_line(name: str, tmp_path: Path) -> None:
    """`train --net my.toml` leaves with 2 and that line, and writes no run."""
    text, line, told = FAULTS[name]
    path = written(tmp_path, text)
    said = run(path, tmp_path / "run")
    assert f"{path}, line {line}: " in said
    assert told in said


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    """A file that is not there, a folder, and a file that is not UTF-8 are named on the command line with the reason."""
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin.toml").write_bytes('# Größe\n[[layer]]\nkind = "depthwise"\n'.encode("latin-1"))
    cases = {"gone": "cannot be read (No such file or directory)", "folder": "cannot be read (Is a directory)", "latin": "not a text file in UTF-8"}  # fmt: skip
    for name, told in cases.items():
        assert f"{name}.toml: {told}" in run(tmp_path / f"{name}.toml", tmp_path / "run")
