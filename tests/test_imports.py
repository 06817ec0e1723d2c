"""Who imports whom, and what stays out of a process that does not need it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgecnn
import edgecnn_exporters
from edgecnn.cli import COMMANDS

ROOT = Path(edgecnn.__file__).parent
EXPORTERS = Path(edgecnn_exporters.__file__).parent
HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "onnxscript",
    "safetensors",
    "matplotlib",
    "sklearn",
    "rich",
    "optuna",
    "aiohttp",
    "prometheus_client",
    "cryptography",
    "av",
)
TORCH_CODE = ("edgecnn.nets", "edgecnn.training", "edgecnn.quantization")
SERVER_CODE = ("edgecnn.serving",)

# DESIGN.md's table, lowest first; a module takes the layer of the longest name here that it begins with. Beyond the
# table: layers, files, host and pipes stand beside spec, manifest and exporter beside bundle, runs beside data, predict beside parity,
# quantization above parity and bench, and assemble, inspection and testing just under cli.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "edgecnn",
        "edgecnn.errors",
        "edgecnn.spec",
        "edgecnn.layers",
        "edgecnn.files",
        "edgecnn.host",
        "edgecnn.pipes",
        "edgecnn.protobuf",
        "edgecnn.ssh",
    ),
    (
        "edgecnn.images",
        "edgecnn.metrics",
        "edgecnn.manifest",
        "edgecnn.archive",
        "edgecnn.signing",
        "edgecnn.bundle",
        "edgecnn.exporter",
    ),
    ("edgecnn.registry", "edgecnn.backends", "edgecnn.data", "edgecnn.runs", "edgecnn.nets"),
    (
        "edgecnn.predict",
        "edgecnn.layouts",
        "edgecnn.sources",
        "edgecnn.decoding",
        "edgecnn.parity",
        "edgecnn.bench",
        "edgecnn.device",
        "edgecnn.report",
        "edgecnn.training",
    ),
    ("edgecnn.quantization",),
    (
        "edgecnn.serving",
        "edgecnn.assemble",
        "edgecnn.search",
        "edgecnn.inspection",
        "edgecnn.pytest_plugin",
        "edgecnn.testing",
        "edgecnn_exporters",
    ),
    ("edgecnn.cli", "edgecnn.__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules(package: Path) -> dict[str, Path]:
    """Map every module's dotted name to its file."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


OURS = modules(ROOT)
ALL = OURS | modules(EXPORTERS)


def layer(module: str) -> str:
    """Return the name in LAYERS that a module belongs to."""
    names = [name for name in RANK if module == name or (module.startswith(f"{name}.") and name != "edgecnn")]
    assert names, f"{module} has no place in LAYERS: give it one"
    return max(names, key=len)


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Walk what runs at import: not into functions, nor into `if TYPE_CHECKING`."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from statements(handler.body)


def imported(node: ast.AST) -> list[str]:
    """Name what one import statement imports; a name that is itself a module counts as that module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute here"
        children = [f"{node.module}.{alias.name}" for alias in node.names]
        return [child if child in ALL else str(node.module) for child in children]
    return []


def arrows(path: Path) -> set[str]:
    """List what a module imports when it is imported."""
    return {name for node in statements(ast.parse(path.read_text()).body) for name in imported(node)}


@pytest.mark.parametrize("module", ALL)
def test_no_module_imports_from_above(module: str) -> None:
    """At module top every import goes to the same layer or a lower one."""
    ours = {name for name in arrows(ALL[module]) if name.partition(".")[0] in ("edgecnn", "edgecnn_exporters")}
    upward = {name for name in ours if RANK[layer(name)] > RANK[layer(module)]}
    assert not upward


@pytest.mark.parametrize("module", [name for name in ALL if not name.startswith(TORCH_CODE)])
def test_torch_code_and_heavy_packages_are_not_imported_at_the_top(module: str) -> None:
    """Outside nets and training no module imports these two, or a heavy package, at module top."""
    names = arrows(ALL[module])
    assert not {
        name for name in names if name.startswith(TORCH_CODE + SERVER_CODE) and not module.startswith(SERVER_CODE)
    }
    mine = ("aiohttp", "prometheus_client") if module.startswith(SERVER_CODE) else ()
    assert not {name for name in names if name.partition(".")[0] in HEAVY and name.partition(".")[0] not in mine}


def test_exporters_are_reached_through_the_registry_only() -> None:
    """No module of edgecnn imports the exporters' package anywhere, inside functions neither."""
    for path in OURS.values():
        names = [name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node)]
        assert not [name for name in names if name.startswith("edgecnn_exporters")], path


def test_the_walk_sees_every_module() -> None:
    """The walk over files finds modules of every depth in both packages, under the names that Python gives them."""
    known = {
        "edgecnn",
        "edgecnn.spec",
        "edgecnn.cli",
        "edgecnn.cli.predict",
        "edgecnn.backends.base",
        "edgecnn.nets.build",
    }
    assert known | {"edgecnn_exporters", "edgecnn_exporters.onnx"} <= set(ALL)
    assert {name for name in ALL if "." not in name} == {"edgecnn", "edgecnn_exporters"}
    assert all(path.is_file() for path in ALL.values())


def test_the_checks_see_what_they_look_for() -> None:
    """The walk over imports finds those in branches and classes and passes over functions and type checking."""
    source = """
from edgecnn import host
import torch.nn
try:
    import a
except ImportError:
    import b
else:
    import c
finally:
    import d
if TYPE_CHECKING:
    import onnx
else:
    from e import f
class K:
    import g
    def method(self):
        import h
def function():
    import i
with x:
    import j
"""
    names = {name for node in statements(ast.parse(source).body) for name in imported(node)}
    assert names == {"edgecnn.host", "torch.nn", "a", "b", "c", "d", "e", "g", "j"}


def areas() -> dict[str, list[str]]:
    """Group the modules that may go onto the box by the first name below the package."""
    grouped: dict[str, list[str]] = {}
    for name in ALL:
        if name.startswith(TORCH_CODE) or name.endswith("__main__"):
            continue
        top = name.split(".")[1] if name.startswith("edgecnn.") and (ROOT / name.split(".")[1]).is_dir() else ""
        grouped.setdefault("edgecnn_exporters" if name.startswith("edgecnn_exporters") else top or "top", []).append(
            name
        )
    return grouped


def fresh(source: str, *arguments: str) -> list[str]:
    """Run a script in a new interpreter and return what it prints last: the names in sys.modules."""
    script = f"{source}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names


def heavy(names: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in names} & set(HEAVY)


@pytest.mark.parametrize("area", areas())
def test_importing_an_area_imports_nothing_heavy(area: str) -> None:
    """In a fresh interpreter every module of the area can be imported, and none of the heavy packages comes along."""
    wanted = areas()[area]
    names = fresh("import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)", *wanted)
    assert set(wanted) <= set(names)
    allowed = {"aiohttp", "prometheus_client"} if area == "serving" else set()
    assert not heavy(names) - allowed
    assert not [name for name in names if name.startswith(TORCH_CODE)]


def test_help_of_every_command_imports_nothing_heavy() -> None:
    """`--help` of the group and of every command works in a fresh interpreter without numpy or anything heavier."""
    source = """
import sys
from edgecnn.cli import cli
for name in ([], *([word] for word in sys.argv[1:])):
    try:
        cli([*name, "--help"], prog_name="edgecnn")
    except SystemExit as leaving:
        assert leaving.code == 0, name
"""
    names = fresh(source, *COMMANDS)
    assert {f"edgecnn.cli.{name}" for name in COMMANDS} <= set(names)
    assert not heavy(names)
    assert "numpy" not in names


def test_help_of_one_command_does_not_import_the_others() -> None:
    """Asking for one command's help imports that command's module alone."""
    source = """
from edgecnn.cli import cli
try:
    cli(["predict", "--help"], prog_name="edgecnn")
except SystemExit:
    pass
"""
    names = fresh(source)
    others = {f"edgecnn.cli.{name}" for name in COMMANDS} - {"edgecnn.cli.predict"}
    assert "edgecnn.cli.predict" in names
    assert not others & set(names)


BARE = """
import json, sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    hidden = {"torch", "onnx", "onnxscript", "safetensors", "sklearn", "matplotlib", "rich", "scipy"}
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in cls.hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
from click.testing import CliRunner
from edgecnn.cli import cli
bundle, image, out = sys.argv[1:]
commands = {
    "predict": ["predict", bundle, image, "--json"],
    "parity": ["parity", bundle, "--json"],
    "bench": ["bench", bundle, "--seconds", "0.05", "--cold-runs", "0", "--json"],
    "soak": ["bench", bundle, "--soak", "1s", "--json"],
    "tune": ["tune", bundle, "--seconds", "0.5", "--dry-run", "--json"],
    "inspect": ["inspect", bundle, "--json"],
    "inspect onnx": ["inspect", bundle + "/fp32.onnx", "--json"],
    "doctor": ["doctor", "--json"],
    "train": ["train", "digits", "-o", out],
    "parity torch": ["parity", bundle, "-r", "torch"],
}
results = {}
for name, arguments in commands.items():
    done = CliRunner().invoke(cli, arguments)
    results[name] = [done.exit_code, done.stdout, done.stderr]
print(json.dumps(results))
"""


def test_the_box_needs_no_torch(bundle_folder: Path, tmp_path: Path) -> None:
    """Where torch, onnx and the rest of the train extra are not installed the box's commands work all the same."""
    image = str(bundle_folder / "goldens" / "000.png")
    command = [sys.executable, "-c", BARE, str(bundle_folder), image, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for name in ("predict", "parity", "bench", "soak", "tune", "inspect", "inspect onnx", "doctor"):
        assert results[name][0] == 0, (name, results[name])
        json.loads(results[name][1])
    parity = json.loads(results["parity"][1])
    assert (parity["reference"], parity["verdict"]) == ("goldens", "PASS")
    backends = {state["name"]: state for state in json.loads(results["doctor"][1])["backends"]}
    assert "edgecnn[train]" in backends["torch"]["problem"]
    for name in ("train", "parity torch"):
        code, out, err = results[name]
        assert (code, out) == (2, ""), (name, results[name])
        assert "edgecnn[train]" in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
