"""Profiles of a machine: written outside the bundle, found again, used, and passed over where they do not hold."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from edgecnn.backends import onnxruntime as ort_backend
from edgecnn.backends.base import SessionOptions
from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.device import profile as profiles
from edgecnn.device.profile import Choice, Key, Profile, Settings, chosen, folders_of, key_of, look_up, write_profile
from edgecnn.errors import MissingPackageError, UsageError
from edgecnn.spec import BackendRef, to_json

DEFAULT = BackendRef(backend="onnxruntime")
TUNED = Settings(backend="onnxruntime:fp32", threads=3, spinning=True, optimization="extended", batch=16)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a settings folder of its own, and no system-wide one."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "system"))
    return tmp_path


@pytest.fixture
def bundle(bundle_folder: Path, home: Path) -> Bundle:
    """Open the bundle where no profile is yet."""
    return Bundle.open(bundle_folder)


def made(bundle: Bundle, settings: Settings | None = TUNED, **changes: Any) -> Profile:
    """Make a profile of this machine for a bundle, with fields of its key changed."""
    return Profile(
        schema_version=1,
        edgecnn="0",
        created="2026-01-02T03:04:05+00:00",
        bundle=bundle.manifest.name,
        key=msgspec.structs.replace(key_of(bundle), **changes),
        purpose="latency",
        settings=settings,
        gain=(0.5, 0.4, 0.6) if settings else None,
    )


def test_without_a_profile_the_defaults_are_chosen(bundle: Bundle) -> None:
    """Where nothing was tuned, ONNX Runtime with its default options is chosen and nothing is said."""
    assert chosen(bundle, None, None) == Choice(DEFAULT, SessionOptions())
    assert chosen(bundle, BackendRef.parse("torch"), 2) == Choice(
        BackendRef(backend="torch"), SessionOptions(threads=2)
    )


def test_a_profile_is_found_used_and_announced(bundle: Bundle) -> None:
    """What was written is what is chosen, down to every option, and the notice names day and settings."""
    path = write_profile(made(bundle))
    assert bundle.root not in path.parents
    found = chosen(bundle, None, None)
    assert found.ref == BackendRef(backend="onnxruntime", artifact="fp32")
    assert found.options == SessionOptions(threads=3, spinning=True, optimization="extended")
    assert found.batch == 16
    assert (
        found.notice
        == "tuned for latency on 2026-01-02: onnxruntime:fp32, 3 threads, spinning, optimization extended, batch 16"
    )


@pytest.mark.parametrize("threads", [None, 2])
def test_of_many_runs_at_once_each_has_one_thread(threads: int | None, bundle: Bundle) -> None:
    """Where several threads run the model, what was tuned for it alone in threads, spinning and batch is left out and not told."""
    write_profile(made(bundle))
    found = chosen(bundle, None, threads, many=True)
    assert found.ref == BackendRef(backend="onnxruntime", artifact="fp32")
    assert found.options == SessionOptions(threads=threads or 1, optimization="extended")
    assert found.batch == 1
    told = "1 thread" if threads is None else "2 threads"
    assert found.notice == f"tuned for latency on 2026-01-02: onnxruntime:fp32, {told}, optimization extended"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), "1 thread, optimization extended"),
        (("--batch", "1"), "1 thread, optimization extended"),
        (("--batch", "8"), "3 threads, spinning, optimization extended, batch 8"),
        (("--decode-threads", "0"), "3 threads, spinning, optimization extended, batch 16"),
    ],
)
def test_predict_tells_what_it_runs_with(bundle: Bundle, given: tuple[str, ...], told: str) -> None:
    """A batch of one that was asked for is as the default; the batch that is told is the one that runs."""
    write_profile(made(bundle))
    words = ["predict", str(bundle.root), str(bundle.root / "goldens"), "--decode-threads", "2", *given]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0
    assert result.stderr == f"edgecnn: tuned for latency on 2026-01-02: onnxruntime:fp32, {told}\n"


def test_a_profile_of_defaults_says_so(bundle: Bundle) -> None:
    """Where tuning found nothing better, the defaults are chosen and the notice says that they were tuned."""
    write_profile(made(bundle, None))
    found = chosen(bundle, None, None)
    assert (found.ref, found.options, found.batch) == (DEFAULT, SessionOptions(), None)
    assert found.notice == "tuned for latency on 2026-01-02: the defaults are as good"


@pytest.mark.parametrize(
    ("ref", "threads", "expected"),
    [
        (None, 1, ("onnxruntime:fp32", SessionOptions(threads=1, spinning=True, optimization="extended"), True)),
        ("onnxruntime", None, ("onnxruntime:fp32", TUNED.options, True)),
        ("onnxruntime:fp32", None, ("onnxruntime:fp32", TUNED.options, True)),
        ("onnxruntime:int8", None, ("onnxruntime:int8", SessionOptions(), False)),
        ("onnxruntime:int8", 2, ("onnxruntime:int8", SessionOptions(threads=2), False)),
        ("onnxruntime@cuda:0", None, ("onnxruntime@cuda:0", SessionOptions(), False)),
        ("openvino", None, ("openvino", SessionOptions(), None)),
    ],
)
def test_what_the_person_gives_wins(
    ref: str | None, threads: int | None, expected: tuple[str, SessionOptions, bool | None], bundle: Bundle
) -> None:
    """Threads replace the profile's; another artifact, device or backend leaves it unused, and for ONNX Runtime that is told."""
    write_profile(made(bundle))
    found = chosen(bundle, BackendRef.parse(ref) if ref else None, threads)
    name, options, used = expected
    assert (str(found.ref), found.options) == (name, options)
    if used is None:
        assert found.notice is None
    else:
        assert (found.batch == 16, "not used" in str(found.notice)) == (used, not used)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cpu": "Another"}, "CPU Another then, "),
        ({"features": ("asimd",)}, "CPU features asimd then, "),
        ({"usable_cpus": 99}, "usable CPUs 99 then, "),
        ({"onnxruntime": "1.2.3"}, "ONNX Runtime 1.2.3 then, "),
        ({"manifest": "0" * 64}, "the bundle is another"),
        ({"cpu": "Another", "onnxruntime": "1.2.3"}, "ONNX Runtime 1.2.3 then, "),
    ],
)
def test_a_profile_of_something_else_is_passed_over(change: dict[str, Any], told: str, bundle: Bundle) -> None:
    """A profile of another CPU, number of CPUs, runtime or bundle changes nothing, and one line says what differs."""
    write_profile(made(bundle, **change))
    found = chosen(bundle, None, 2)
    assert (found.ref, found.options, found.batch) == (DEFAULT, SessionOptions(threads=2), None)
    assert told in str(found.notice)
    assert str(found.notice).startswith("the profile of 2026-01-02 is not used (")
    assert str(found.notice).endswith("run `edgecnn tune` again")
    assert "\n" not in str(found.notice)


def test_the_profile_that_holds_is_found_among_others(bundle: Bundle) -> None:
    """Profiles of other machines lie beside it in a shared home, and each machine finds its own."""
    for change in ({"cpu": "A"}, {"usable_cpus": 99}, {"manifest": "0" * 64}):
        write_profile(made(bundle, **change))
    write_profile(made(bundle))
    found = look_up(bundle)
    assert isinstance(found, Profile)
    assert found.key == key_of(bundle)
    assert len(list((folders_of(dict(profiles.os.environ))[0]).rglob("*.json"))) == 4


def test_the_nearest_of_those_that_do_not_hold_is_told(bundle: Bundle) -> None:
    """Of several profiles the one with the fewest differences is named."""
    write_profile(made(bundle, cpu="Far", onnxruntime="0", usable_cpus=99))
    write_profile(made(bundle, usable_cpus=77))
    assert "(usable CPUs 77 then" in str(chosen(bundle, None, None).notice)


def test_tuning_again_replaces_the_profile(bundle: Bundle) -> None:
    """A second profile for the same things takes the first one's place, whole, with nothing left beside it."""
    first = write_profile(made(bundle))
    second = write_profile(made(bundle, None))
    assert first == second
    assert [file.name for file in first.parent.iterdir()] == [first.name]
    assert "as good" in str(chosen(bundle, None, None).notice)


def test_a_killed_write_leaves_the_old_profile(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """When writing fails before its end, what was there before is still what is read."""
    write_profile(made(bundle))
    monkeypatch.setattr(
        "edgecnn.files.os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OSError, match="No space left"):
        write_profile(made(bundle, None))
    assert chosen(bundle, None, None).batch == 16


def _not_json(profile: Profile) -> bytes:
    return b"{"


def _of_tomorrow(profile: Profile) -> bytes:
    return to_json(msgspec.structs.replace(profile, schema_version=2))


def _with_more(profile: Profile) -> bytes:
    return to_json(profile).replace(b'"bundle"', b'"extra": 1, "bundle"', 1)


def _without_threads(profile: Profile) -> bytes:
    return to_json(profile).replace(b'"threads": 3', b'"threads": 0')


def _of_another_backend(profile: Profile) -> bytes:
    return to_json(profile).replace(b"onnxruntime:fp32", b"torch:fp32")


def _too_large(profile: Profile) -> bytes:
    return to_json(profile) + b" " * (profiles.LARGEST + 1)


@pytest.mark.parametrize(
    "damage", [_not_json, _of_tomorrow, _with_more, _without_threads, _of_another_backend, _too_large]
)
def test_a_damaged_profile_is_passed_over(damage: Callable[[Profile], bytes], bundle: Bundle) -> None:
    """What is no profile, one of a later version, or one with impossible settings changes nothing and is named."""
    profile = made(bundle)
    path = write_profile(profile)
    path.write_bytes(damage(profile))
    found = chosen(bundle, None, None)
    assert (found.ref, found.options, found.batch) == (DEFAULT, SessionOptions(), None)
    assert str(path) in str(found.notice)
    assert "\n" not in str(found.notice)


def test_a_service_finds_what_lies_in_the_systems_folder(bundle: Bundle, home: Path) -> None:
    """A profile put under XDG_CONFIG_DIRS is used, and the person's own comes before it."""
    own = write_profile(made(bundle, None))
    system = home / "system" / "edgecnn" / "profiles" / own.parent.name / own.name
    system.parent.mkdir(parents=True)
    system.write_bytes(to_json(made(bundle)))
    assert chosen(bundle, None, None).batch is None
    own.unlink()
    assert chosen(bundle, None, None).batch == 16


def test_folders_follow_the_xdg_specification() -> None:
    """The settings folder, else ~/.config; then the system's, by default /etc/xdg; relative paths count as not set."""

    def listed(**environment: str) -> list[str]:
        return [str(path).removesuffix("/edgecnn/profiles") for path in folders_of(environment)]

    assert listed(HOME="/h") == ["/h/.config", "/etc/xdg"]
    assert listed(HOME="/h", XDG_CONFIG_HOME="/c", XDG_CONFIG_DIRS="/d:/e") == ["/c", "/d", "/e"]
    assert listed(HOME="/h", XDG_CONFIG_HOME="c", XDG_CONFIG_DIRS="d:/e") == ["/h/.config", "/e"]
    assert listed() == ["/etc/xdg"]


def test_without_a_home_a_profile_is_not_written_elsewhere(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no home and no settings folder, writing is refused and nothing goes to the system's folder."""
    profile = made(bundle)
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="XDG_CONFIG_HOME"):
        write_profile(profile)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", ".", "a/b\\c\0d", "ä" * 300, "", "ok name"])
def test_a_bundles_name_cannot_lead_elsewhere(name: str, bundle: Bundle, home: Path) -> None:
    """Whatever a bundle is called, its profile is a file two folders deep in the profiles' folder."""
    path = write_profile(msgspec.structs.replace(made(bundle), bundle=name))
    assert path.resolve().parent.parent == (home / "settings" / "edgecnn" / "profiles").resolve()


def test_the_key_is_of_the_manifest(bundle_copy: Path, home: Path) -> None:
    """A changed byte in the manifest makes another key."""
    before = key_of(Bundle.open(bundle_copy))
    file = bundle_copy / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b'"created"', b' "created"', 1))
    after = key_of(Bundle.open(bundle_copy))
    assert before.differences(after) == ["the bundle is another"]


def test_without_onnxruntime_the_profile_is_not_used(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ONNX Runtime is missing there is nothing to compare versions with, and the notice says what to install."""
    write_profile(made(bundle))

    def missing() -> SimpleNamespace:
        raise MissingPackageError("onnxruntime is not installed here: pip install it")

    monkeypatch.setattr(ort_backend, "import_onnxruntime", missing)
    found = chosen(bundle, None, None)
    assert found.batch is None
    assert "not installed" in str(found.notice)


def test_looking_for_a_profile_that_is_not_there_costs_no_import(bundle: Bundle) -> None:
    """Without a profile `chosen` imports no ONNX Runtime: a cold start does not pay for what was never tuned."""
    script = """
import sys
from pathlib import Path
from edgecnn.bundle import Bundle
from edgecnn.device.profile import chosen
chosen(Bundle.open(Path(sys.argv[1])), None, None)
print("onnxruntime" in sys.modules, "importlib.metadata" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script, str(bundle.root)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_differences_are_none_with_itself(bundle: Bundle) -> None:
    """A key does not differ from itself, and differs in all five from one that shares nothing."""
    here = key_of(bundle)
    other = Key(cpu="x", features=("y",), usable_cpus=99, onnxruntime="z", manifest="w")
    assert here.differences(here) == []
    assert len(here.differences(other)) == 5
