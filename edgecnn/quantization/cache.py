"""Keeps what calibration observed, so that a second attempt with the same model and images does not run them again."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnxruntime

from edgecnn.files import cache_folder, write_atomic
from edgecnn.quantization.observe import BINS, Array, Feeds, Floats, Observed, observe

# Part of every key: raise it when `Observed` changes, or what `observe` computes.
FORMAT = "edgecnn observations 1"
MOST_FILES = 20
MOST_BYTES = 200_000_000


class KeyedFeeds(Feeds, Protocol):
    """Feeds that can say whether they are the same as others."""

    @property
    def key(self) -> str:
        """A hash of the images and of everything done to them."""


def observe_cached(
    model: onnx.ModelProto,
    feeds: KeyedFeeds,
    tensors: Sequence[str] | None = None,
    bins: int = BINS,
    folder: Path | None = None,
) -> dict[str, Observed]:
    """Do what `observe` does, or take it from `folder` (`cache_folder()` if None) where it has been done before."""
    names = ["*"] if tensors is None else ["", *tensors]  # told apart from a tensor called *
    parts = [model.SerializeToString(deterministic=True), feeds.key, str(bins), onnxruntime.__version__, *names]
    return cached_observations(parts, folder or cache_folder(), lambda: observe(model, feeds, tensors, bins))


def cached_observations(
    key_parts: Sequence[str | bytes], folder: Path | None, make: Callable[[], dict[str, Observed]]
) -> dict[str, Observed]:
    """Give what `make` gave for the same key before, or call it and keep what it gives.

    A cache never fails: a damaged file is made anew, and where nothing can be kept, or `folder` is None, nothing is.
    """
    if folder is None:
        return make()
    path = folder / f"observed-{_hash(key_parts)}.npz"
    kept = _read(path)
    if kept is not None:
        return kept
    made = make()
    with contextlib.suppress(OSError):  # read-only, full, or no folder at all
        write_atomic(path, _to_bytes(made))
        _bound(folder, path)
    return made


def _hash(parts: Sequence[str | bytes]) -> str:
    """Hash all parts, each behind its length, so that none can pass for the end of another."""
    digest = hashlib.sha256(FORMAT.encode())
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _to_bytes(observations: dict[str, Observed]) -> bytes:
    """Lay all tensors out as a few arrays: one row a tensor, the channels of all one after the other."""
    every = list(observations.values())
    channels = [
        np.stack([one.channel_low, one.channel_high, one.channel_mean])
        if one.channel_low is not None and one.channel_high is not None and one.channel_mean is not None
        else np.zeros((3, 0))
        for one in every
    ]
    file = io.BytesIO()
    np.savez_compressed(
        file,
        names=np.array(list(observations)),
        floats=np.array([(one.low, one.high, one.mean, one.rms) for one in every]),
        counts=np.array([(one.count, one.zeros, one.at_low, one.at_high) for one in every]),
        histograms=np.stack([one.histogram for one in every]),
        channel_counts=np.array([part.shape[1] for part in channels]),
        channels=np.concatenate(channels, axis=1),
    )
    return file.getvalue()


def _read(path: Path) -> dict[str, Observed] | None:
    """Read a file of `_to_bytes`, and mark it as used; None if there is none, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        observations = _from_arrays(arrays)
    except Exception:  # a damaged zip fails in zipfile, zlib, numpy or here, each with types of its own
        return None
    with contextlib.suppress(OSError):  # a folder that may only be read serves as well
        os.utime(path)
    return observations


def _from_arrays(arrays: dict[str, Array]) -> dict[str, Observed]:
    found = {}
    ends = np.cumsum(arrays["channel_counts"])
    arrays["histograms"].setflags(write=False)
    for row, name in enumerate(arrays["names"].tolist()):
        low, high, mean, rms = arrays["floats"][row].tolist()
        count, zeros, at_low, at_high = arrays["counts"][row].tolist()
        histogram = arrays["histograms"][row]
        if int(histogram.sum()) != count:
            raise ValueError(name)
        own = arrays["channels"][:, ends[row] - arrays["channel_counts"][row] : ends[row]]
        channels: list[Floats | None] = list(own) if own.shape[1] else [None, None, None]
        found[name] = Observed(low, high, mean, rms, count, histogram, zeros, at_low, at_high, *channels)
    return found


def _bound(folder: Path, newest: Path) -> None:
    """Remove the files used longest ago until few enough are left, `newest` among them in any case."""
    kept = [(file.stat(), file) for file in folder.glob("observed-*.npz") if file != newest]
    kept.sort(key=lambda entry: entry[0].st_mtime, reverse=True)
    files, size = 1, newest.stat().st_size
    for status, file in kept:
        files, size = files + 1, size + status.st_size
        if files > MOST_FILES or size > MOST_BYTES:
            file.unlink(missing_ok=True)
