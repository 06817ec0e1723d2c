"""The machine's profile: the settings that `tune` found best for a bundle here, kept outside the bundle.

Profiles lie in `edgecnn/profiles` of `XDG_CONFIG_HOME` (`~/.config` where it is not set), and are looked for in
`XDG_CONFIG_DIRS` (`/etc/xdg`) after that, as the XDG Base Directory Specification 0.8 says: what was tuned once can be
put where a service finds it. A profile holds for one CPU, so many usable ones, one ONNX Runtime and one bundle.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgecnn import host
from edgecnn.backends.base import Optimization, SessionOptions
from edgecnn.bundle import Bundle
from edgecnn.errors import MissingPackageError, UsageError
from edgecnn.files import write_atomic
from edgecnn.manifest import MANIFEST
from edgecnn.predict import DEFAULT_BACKEND
from edgecnn.spec import BackendRef, Frozen, to_json

SCHEMA_VERSION = 1
_PROFILES = Path("edgecnn") / "profiles"
LARGEST = 1 << 20  # bytes: no profile is larger
Purpose = Literal["latency", "throughput"]


class Key(Frozen, frozen=True):
    """What a profile holds for; `features` are those of the CPU that matter to int8, `manifest` is its SHA-256."""

    cpu: str
    features: tuple[str, ...]
    usable_cpus: int
    onnxruntime: str
    manifest: str

    def differences(self, other: Key) -> list[str]:
        """Say in what `other`, which is here and now, is not what this was measured with."""
        found = [
            f"{what} {then} then, {now} now"
            for what, then, now in (
                ("CPU", self.cpu, other.cpu),
                ("CPU features", " ".join(self.features) or "none", " ".join(other.features) or "none"),
                ("usable CPUs", self.usable_cpus, other.usable_cpus),
                ("ONNX Runtime", self.onnxruntime, other.onnxruntime),
            )
            if then != now
        ]
        return found + (["the bundle is another"] if self.manifest != other.manifest else [])


class Settings(Frozen, frozen=True):
    """What runs and how, as a profile keeps it; `backend` is a written BackendRef, `batch` the images a run."""

    backend: str
    threads: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    spinning: bool
    optimization: Optimization
    batch: Annotated[int, msgspec.Meta(ge=1, le=4096)]

    def __post_init__(self) -> None:
        """Refuse what is no reference."""
        if BackendRef.parse(self.backend).backend != DEFAULT_BACKEND:
            raise ValueError(f"{self.backend!r} is not of {DEFAULT_BACKEND}, which is all that is tuned")

    @property
    def options(self) -> SessionOptions:
        """The same as a session takes it."""
        return SessionOptions(threads=self.threads, spinning=self.spinning, optimization=self.optimization)


class Profile(Frozen, frozen=True):
    """What `tune` found; `settings` None says that the defaults are as good as anything that was tried.

    `gain` is median, low and high of the time an image takes over the default's, with the settings. `created` is ISO 8601.
    """

    schema_version: int
    edgecnn: str
    created: str
    bundle: str
    key: Key
    purpose: Purpose
    settings: Settings | None
    gain: tuple[float, float, float] | None


@dataclass(frozen=True)
class Choice:
    """What is to run and how; `batch` None where nothing speaks for one.

    `notice` is one line for stderr, without the program's name before it: which profile is used, or why one is not.
    """

    ref: BackendRef
    options: SessionOptions
    batch: int | None = None
    notice: str | None = None


def chosen(
    bundle: Bundle, ref: BackendRef | None, threads: int | None, many: bool = False, batch: int | None = None
) -> Choice:
    """Choose by this machine's profile for the bundle; what the person gave (`ref`, `threads`, `batch`) wins over it.

    With `many`, several threads run the model at once, each for an image of its own. A profile, which is of the model
    alone, then decides on all but threads, spinning and batch: those would fight over the cores.

    A reference to ONNX Runtime without `:ARTIFACT` leaves the artifact open. A profile of another machine, runtime or
    bundle is passed over with a notice, as is one that the person's choice leaves nothing of.
    """
    plain = Choice(ref or BackendRef(backend=DEFAULT_BACKEND), SessionOptions(threads=threads))
    if plain.ref.backend != DEFAULT_BACKEND or not any(_files(bundle.manifest.name)):
        return plain
    found = look_up(bundle)
    if not isinstance(found, Profile):
        return Choice(plain.ref, plain.options, notice=found)
    day = found.created[:10]
    if found.settings is None:
        return Choice(plain.ref, plain.options, notice=f"tuned for {found.purpose} on {day}: the defaults are as good")
    tuned, settings = BackendRef.parse(found.settings.backend), found.settings
    if (plain.ref.device != tuned.device and ref is not None) or plain.ref.artifact not in (None, tuned.artifact):
        return Choice(
            plain.ref, plain.options, notice=f"the profile of {day} is for {tuned}, not for {plain.ref}: not used"
        )
    if many and tuned.device == "cpu":
        settings = msgspec.structs.replace(settings, threads=1, spinning=False, batch=1)
    settings = msgspec.structs.replace(settings, threads=threads or settings.threads, batch=batch or settings.batch)
    told = f"tuned for {found.purpose} on {day}: {describe(tuned, settings.options, settings.batch)}"
    return Choice(tuned, settings.options, settings.batch, told)


def describe(ref: BackendRef, options: SessionOptions, batch: int = 1) -> str:
    """Write a choice in words; no two different ones are written alike."""
    count = f"{options.threads} thread{'s' * (options.threads != 1)}" if options.threads else "all threads"
    spinning = ", spinning" if options.spinning else ""
    level = f", optimization {options.optimization}" if options.optimization != SessionOptions().optimization else ""
    return f"{ref}, {count}{spinning}{level}" + (f", batch {batch}" if batch > 1 else "")


def look_up(bundle: Bundle) -> Profile | str | None:
    """Find the profile that holds here; or say why there is none, in one line where there is another one."""
    try:
        here = key_of(bundle)
    except MissingPackageError as error:
        return f"this machine's profile is not used: {error}"
    others: list[tuple[int, str, str]] = []
    for file in _files(bundle.manifest.name):
        profile = _read(file)
        if isinstance(profile, str):
            others.append((99, "", profile))
            continue
        differences = profile.key.differences(here)
        if not differences:
            return profile
        told = f"the profile of {profile.created[:10]} is not used ({'; '.join(differences)})"
        others.append((len(differences), profile.created, told))
    return f"{min(others)[2]}: run `edgecnn tune` again" if others else None


def key_of(bundle: Bundle) -> Key:
    """Say what a profile made here and now for a bundle holds for.

    Raises:
        MissingPackageError: ONNX Runtime is not installed.
    """
    from edgecnn.backends.onnxruntime import import_onnxruntime

    name, features = host.cpu()
    return Key(
        cpu=name,
        features=features,
        usable_cpus=host.usable_threads(),
        onnxruntime=import_onnxruntime().__version__,
        manifest=hashlib.sha256((bundle.root / MANIFEST).read_bytes()).hexdigest(),
    )


def write_profile(profile: Profile) -> Path:
    """Write a profile into the person's own folder, whole or not at all, over an older one for the same things.

    Raises:
        UsageError: there is no place to put it into.
    """
    own = own_place()
    held_for = hashlib.sha256(to_json(profile.key)).hexdigest()[:16]
    path = own / _slug(profile.bundle) / f"{held_for}.json"
    write_atomic(path, to_json(profile))
    return path


def own_place() -> Path:
    """Make the person's own folder of profiles and return it.

    Raises:
        UsageError: there is no home to put it into, or it cannot be written to.
    """
    own, told = own_folder(os.environ), "set XDG_CONFIG_HOME to a folder for settings"
    if own is None:
        raise UsageError(f"no home folder to put the profile into: {told}")
    try:
        own.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{own}: no folder for the profile can be made ({error.strerror}): {told}") from None
    if not os.access(own, os.W_OK | os.X_OK):
        raise UsageError(f"{own}: the profile cannot be written there: {told}")
    return own


def own_folder(environment: Mapping[str, str]) -> Path | None:
    """Name the person's own folder of profiles, None without a home; a relative path counts as not set."""
    base, home = Path(environment.get("XDG_CONFIG_HOME", "")), Path(environment.get("HOME", ""))
    if not base.is_absolute() and not home.is_absolute():
        return None
    return (base if base.is_absolute() else home / ".config") / _PROFILES


def folders_of(environment: Mapping[str, str]) -> list[Path]:
    """List the folders that may hold profiles, the person's own first."""
    own = own_folder(environment)
    bases = map(Path, (environment.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":"))
    return [*([own] if own else []), *(base / _PROFILES for base in bases if base.is_absolute())]


def _files(name: str) -> Iterator[Path]:
    """List the profiles that there are for bundles of this name."""
    for folder in folders_of(os.environ):
        try:
            yield from sorted((folder / _slug(name)).glob("[0-9a-f]*.json"))
        except OSError:
            continue


def _read(file: Path) -> Profile | str:
    try:
        if not file.is_file():  # a pipe would be waited for
            return f"{file}: is no file"
        with file.open("rb") as opened:
            data = opened.read(LARGEST + 1)
        if len(data) > LARGEST:
            return f"{file}: over {LARGEST >> 20} MB, which no profile is"
        profile = msgspec.json.decode(data, type=Profile)
    except (OSError, msgspec.MsgspecError, RecursionError, UsageError) as error:
        return f"{file}: cannot be read as a profile ({' '.join(str(error).split())})"
    if profile.schema_version != SCHEMA_VERSION:
        return f"{file}: schema version {profile.schema_version} is unknown, this edgecnn reads {SCHEMA_VERSION}"
    return profile


def _slug(name: str) -> str:
    """Make a folder's name of a bundle's, which may be any text."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:80].lstrip(".") or "_"
