"""Names to plugins: who owns them, what is missing, and what is imported on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgecnn import registry
from edgecnn.backends.base import Backend
from edgecnn.cli import cli
from edgecnn.errors import MissingPackageError, RegistryError
from edgecnn.registry import BACKENDS, EXPORTERS

GOOD = """
class Plugin:
    name = "{name}"
    formats = ("onnx",)
    def devices(self): return ("cpu", "npu:0")
"""
BROKEN = {
    "raises on import": ("raise RuntimeError('no licence\\n found')", "RuntimeError: no licence"),
    "needs a module that is not there": ("import surely_not_installed", "surely_not_installed"),
    "is not Python": ("def (", "SyntaxError"),
    "has no such class": ("", "Plugin"),
    "raises when made": ("class Plugin:\n    def __init__(self): raise OSError('no driver')", "OSError: no driver"),
    "is no class": ("Plugin = 3", "not callable"),
    "exits on import": ("raise SystemExit(7)", "SystemExit"),
}
Maker = Callable[..., None]


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """Return what installs a distribution: a module, and the metadata that pip would write."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def make(owner: str, name: str, source: str, group: str = BACKENDS, value: str | None = None) -> None:
        module = f"{owner.replace('-', '_')}_module"
        monkeypatch.delitem(sys.modules, module, raising=False)
        (site / f"{module}.py").write_text(source)
        info = site / f"{owner.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {owner}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value or f'{module}:Plugin'}\n")

    return make


def lines(error: BaseException) -> int:
    return len(str(error).splitlines())


@pytest.mark.parametrize(
    ("group", "expected"),
    [(BACKENDS, {"onnxruntime", "torch", "reference", "openvino"}), (EXPORTERS, {"onnx", "onnx-int8", "onnx-fp16"})],
)
def test_what_we_ship_is_registered_and_ready(group: str, expected: set[str]) -> None:
    """Our own backends and exporters come through the entry points like anybody's, each under its own name."""
    assert expected <= set(registry.names(group))
    assert registry.names(group) == sorted(registry.names(group))
    for name in expected:
        assert registry.get(group, name).name == name
    states = {status.name: status for status in registry.statuses(group)}
    assert all(states[name].problem is None and states[name].distribution == "edgecnn" for name in expected)


def test_a_third_partys_plugin_is_found(distribution: Maker) -> None:
    """A distribution that declares the entry point is listed with its owner and can be made."""
    distribution("acme-npu", "npu", GOOD.format(name="npu"))
    backend: Backend = registry.get(BACKENDS, "npu")
    assert backend.devices() == ("cpu", "npu:0")
    status = next(status for status in registry.statuses(BACKENDS) if status.name == "npu")
    assert (status.distribution, status.problem) == ("acme-npu", None)
    assert registry.names(BACKENDS).count("npu") == 1
    assert "npu" not in registry.names(EXPORTERS)


@pytest.mark.parametrize(("group", "kind"), [(BACKENDS, "backend"), (EXPORTERS, "exporter")])
def test_an_unknown_name_lists_the_known_ones(group: str, kind: str, distribution: Maker) -> None:
    """The message says what was looked for and every name there is, third parties' too."""
    distribution("acme", "zebra", GOOD, group)
    with pytest.raises(RegistryError) as caught:
        registry.get(group, "onxruntime")
    assert f"no {kind} is called 'onxruntime'" in str(caught.value)
    assert "zebra" in str(caught.value)
    assert all(name in str(caught.value) for name in registry.names(group))
    assert lines(caught.value) == 1


def test_no_names_at_all_asks_whether_edgecnn_is_installed() -> None:
    """Where there is no entry point of the group the message does not end in an empty list."""
    with pytest.raises(RegistryError, match="known: none; is edgecnn installed"):
        registry.get("edgecnn.nothings", "x")


@pytest.mark.parametrize("name", ["", "torch ", "Torch", "onnxruntime:int8", "../torch"])
def test_names_are_matched_exactly(name: str) -> None:
    """A name in other letters or with more around it is another name."""
    with pytest.raises(RegistryError, match="is called"):
        registry.get(BACKENDS, name)


def test_two_owners_of_one_name_are_both_named(distribution: Maker) -> None:
    """A name claimed by two distributions is an error that names both, whichever comes first on the path."""
    distribution("acme", "npu", GOOD.format(name="acme"))
    distribution("bolt", "npu", GOOD.format(name="bolt"))
    with pytest.raises(RegistryError) as caught:
        registry.get(BACKENDS, "npu")
    assert "acme" in str(caught.value)
    assert "bolt" in str(caught.value)
    assert lines(caught.value) == 1
    problems = {status.distribution: status.problem for status in registry.statuses(BACKENDS) if status.name == "npu"}
    assert set(problems) == {"acme", "bolt"}
    assert all(problem and "acme" in problem and "bolt" in problem for problem in problems.values())


def test_a_builtin_name_cannot_be_taken_over(distribution: Maker) -> None:
    """A third party that claims one of our names is refused rather than run in its place."""
    distribution("acme", "torch", GOOD.format(name="torch"))
    with pytest.raises(RegistryError) as caught:
        registry.get(BACKENDS, "torch")
    assert "acme" in str(caught.value)
    assert "edgecnn (" in str(caught.value)


def test_two_owners_of_the_same_class_are_two_owners(distribution: Maker) -> None:
    """Two distributions that register one name for one and the same class are still named as two owners."""
    distribution("acme", "torch", "", value="edgecnn.backends.torch:TorchBackend")
    with pytest.raises(RegistryError, match=r"acme.*edgecnn \("):
        registry.get(BACKENDS, "torch")


def test_the_other_names_work_beside_a_contested_one(distribution: Maker) -> None:
    """Two owners of one name do not keep anybody from using the others."""
    distribution("acme", "npu", GOOD)
    distribution("bolt", "npu", GOOD)
    assert registry.get(BACKENDS, "onnxruntime").name == "onnxruntime"


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("group", [BACKENDS, EXPORTERS])
def test_a_broken_plugin_is_an_error_with_its_reason(kind: str, group: str, distribution: Maker) -> None:
    """A plugin that cannot be imported or made is a RegistryError of one line: its name, its owner and the reason."""
    source, told = BROKEN[kind]
    distribution("acme-broken", "shaky", source, group)
    with pytest.raises(RegistryError) as caught:
        registry.get(group, "shaky")
    assert all(word in str(caught.value) for word in ("shaky", "acme-broken", told))
    assert lines(caught.value) == 1


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_shown_and_not_dropped(kind: str, distribution: Maker) -> None:
    """The list of all plugins holds the broken one with its reason, and the good ones as ready."""
    source, told = BROKEN[kind]
    distribution("acme-broken", "shaky", source)
    states = {status.name: status for status in registry.statuses(BACKENDS)}
    assert told in (states["shaky"].problem or "")
    assert states["shaky"].distribution == "acme-broken"
    assert states["onnxruntime"].problem is None


def test_doctor_shows_broken_plugins(distribution: Maker) -> None:
    """Doctor succeeds, prints each broken backend as not usable and says why, beside those that work."""
    reasons = {}
    for number, (source, told) in enumerate(BROKEN.values()):
        distribution(f"acme-broken{number}", f"shaky{number}", source)
        reasons[f"shaky{number}"] = told
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0, result.output
    found = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)
    states = {state["name"]: state for state in found["backends"]}
    for name, told in reasons.items():
        row, advice = (line for line in result.stdout.splitlines() if line.removeprefix("- ").startswith(name))
        assert "not usable" in row
        assert name.replace("shaky", "acme-broken") in row
        assert told in advice
        assert told in states[name]["problem"]
        assert states[name]["usable"] == []
        assert any(line.startswith(f"{name}: ") for line in found["advice"])
    assert states["onnxruntime"]["problem"] is None


def test_doctor_shows_a_backend_whose_devices_fail(distribution: Maker) -> None:
    """A backend that loads but cannot list its devices is shown with what it raised."""
    distribution("acme", "moody", "class Plugin:\n    def devices(self): raise OSError('bus error')")
    found = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)
    state = next(state for state in found["backends"] if state["name"] == "moody")
    assert (state["usable"], state["distribution"]) == ([], "acme")
    assert "bus error" in state["problem"]


def test_doctor_shows_broken_exporters_and_contested_names(distribution: Maker) -> None:
    """Doctor prints a broken exporter, and both owners of one name, with what to do."""
    distribution("acme-broken", "shaky", "raise RuntimeError('no licence')", EXPORTERS)
    distribution("bolt", "onnx", GOOD, EXPORTERS)
    text = CliRunner().invoke(cli, ["doctor"]).stdout
    assert "- shaky: shaky (from acme-broken) is broken" in text
    assert text.count("- onnx: 'onnx' is claimed by ") == 2
    assert "uninstall one of them" in text


@pytest.mark.parametrize("module", ["surely_not_installed", "surely_not_installed.runtime"])
def test_a_missing_package_says_what_to_install(module: str, distribution: Maker) -> None:
    """A known name whose package is absent is reported with the package and the way to install it."""
    source = f"class Plugin:\n    requires = {{{module!r}: 'pip install acme-runtime'}}\n    def __init__(self): 1 / 0"
    distribution("acme", "npu", source)
    with pytest.raises(MissingPackageError) as caught:
        registry.get(BACKENDS, "npu")
    assert module in str(caught.value)
    assert "pip install acme-runtime" in str(caught.value)
    problem = next(status.problem for status in registry.statuses(BACKENDS) if status.name == "npu")
    assert problem == str(caught.value)


@pytest.mark.parametrize(
    ("group", "name", "package", "remedy"),
    [
        (BACKENDS, "onnxruntime", "onnxruntime", "edgecnn[cpu]"),
        (BACKENDS, "torch", "torch", "edgecnn[train]"),
        (BACKENDS, "reference", "onnx", "pip install onnx"),
        (BACKENDS, "openvino", "openvino", "edgecnn[openvino]"),
        (EXPORTERS, "onnx", "torch", "edgecnn[train]"),
        (EXPORTERS, "onnx-int8", "onnx", "edgecnn[cpu,train]"),
        (EXPORTERS, "onnx-fp16", "onnx", "edgecnn[cpu,train]"),
    ],
)
def test_our_own_missing_packages_say_what_to_install(
    group: str, name: str, package: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its package is not there, each of our plugins names the extra that brings it."""
    monkeypatch.setattr(registry, "find_spec", lambda module: None)
    with pytest.raises(MissingPackageError) as caught:
        registry.get(group, name)
    assert f"needs the package {package}," in str(caught.value)
    assert remedy in str(caught.value)
    assert lines(caught.value) == 1


WATCH = """
import json, sys
from edgecnn import registry
registry.names(registry.BACKENDS), registry.names(registry.EXPORTERS)
before = sorted(sys.modules)
for group, name in json.loads(sys.argv[1]):
    registry.get(group, name)
print(json.dumps([before, sorted(set(sys.modules) - set(before))]))
"""
LOUD = "raise SystemExit('imported although nobody asked')"
HEAVY = {"torch", "onnx", "onnxruntime", "openvino", "onnxscript", "safetensors", "sklearn", "matplotlib", "rich"}


@pytest.mark.parametrize(
    ("group", "name", "module"),
    [
        (BACKENDS, "onnxruntime", "edgecnn.backends.onnxruntime"),
        (BACKENDS, "torch", "edgecnn.backends.torch"),
        (BACKENDS, "reference", "edgecnn.backends.reference"),
        (BACKENDS, "openvino", "edgecnn.backends.openvino"),
        (EXPORTERS, "onnx", "edgecnn_exporters.onnx"),
    ],
)
def test_looking_one_up_imports_nothing_else(
    group: str, name: str, module: str, distribution: Maker, tmp_path: Path
) -> None:
    """One look-up imports that plugin's module, no other plugin's, and no heavy package."""
    distribution("loud", "loud", LOUD, group)
    command = [sys.executable, "-c", WATCH, json.dumps([[group, name]])]
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, new = json.loads(done.stdout)
    assert module in new
    assert not HEAVY & {entry.partition(".")[0] for entry in before + new}
    plugins = {entry for entry in new if entry.startswith(("edgecnn.backends.", "edgecnn_exporters."))}
    assert plugins <= {module, "edgecnn.backends.base", "edgecnn.backends.providers"}
    assert not [entry for entry in before if entry.startswith(("edgecnn.backends", "edgecnn_exporters"))]
    assert "loud_module" not in before + new
