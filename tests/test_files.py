"""Where edgecnn's cache lies, and that calibration and sysroots look there."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from edgecnn.device.sysroot import sysroot_folder
from edgecnn.files import cache_folder


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"EDGECNN_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"EDGECNN_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/edgecnn"),
        ({"XDG_CACHE_HOME": "b"}, "/somebody/.cache/edgecnn"),
        ({}, "/somebody/.cache/edgecnn"),
    ],
)
def test_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    """EDGECNN_CACHE comes first, then XDG_CACHE_HOME if absolute, then ~/.cache."""
    for name in ("EDGECNN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/somebody")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_without_a_home_there_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home folder has no cache, and no place for a sysroot, unless the environment names one."""

    def homeless() -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    for name in ("EDGECNN_CACHE", "EDGECNN_SYSROOT", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() is None
    assert sysroot_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/b/edgecnn")
    assert sysroot_folder() == Path("/b/edgecnn/sysroot-arm64")
