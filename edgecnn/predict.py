"""Predict with a bundle: encoded images in, labels and probabilities out; needs no torch."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from time import perf_counter

import numpy as np
import numpy.typing as npt

from edgecnn import registry
from edgecnn.backends.base import Backend, SessionOptions, open_session
from edgecnn.bundle import Bundle
from edgecnn.decoding import Ahead, Prepared, Ready, all_ready
from edgecnn.errors import ContractError, UsageError
from edgecnn.images import Pixels
from edgecnn.sources import Found, printable
from edgecnn.sources.files import EmptyFolderError, find_images
from edgecnn.spec import Artifact, BackendRef, Frozen

__all__ = ["EmptyFolderError", "find_images", "printable"]  # for those who look for them here
DEFAULT_BACKEND = "onnxruntime"
UNKNOWN = "unknown"


class Guess(Frozen, frozen=True):
    """One label with its probability."""

    label: str
    probability: float


class Milliseconds(Frozen, frozen=True):
    """What one image took; `inference` is the run's time shared among the images of its batch."""

    decode: float
    preprocess: float
    inference: float


class Prediction(Frozen, frozen=True, omit_defaults=True):
    """The answer for one image, likeliest labels first; or, with `error` set, why there is none.

    `label` is the likeliest, or `unknown` where a threshold was given and `probability`, that of the likeliest, is
    below it. `sha256` is that of the encoded image. Fields that do not apply are left out of the JSON.
    """

    path: str | None = None
    label: str | None = None
    probability: float | None = None
    top: tuple[Guess, ...] = ()
    ms: Milliseconds | None = None
    sha256: str | None = None
    error: str | None = None


class Predictor:
    """A bundle's model, loaded and ready; a context manager."""

    def __init__(self, bundle: Bundle, ref: BackendRef | None = None, options: SessionOptions | None = None) -> None:
        self.bundle = bundle
        self.ref = ref or BackendRef(backend=DEFAULT_BACKEND)
        self.labels = bundle.manifest.labels
        backend = registry.get(registry.BACKENDS, self.ref.backend)
        self.session = open_session(self.ref, artifact_for(bundle, self.ref, backend), options, backend)
        wanted = (bundle.manifest.inputs, tuple(spec.name for spec in bundle.manifest.outputs))
        if (self.session.inputs, tuple(spec.name for spec in self.session.outputs)) != wanted:
            raise ContractError(f"{self.ref}: the artifact's inputs and outputs are not those that the manifest states")
        self._input = self.session.inputs[0].name
        one_thread = options is not None and options.threads == 1  # several would fight over the cores with the others'
        self._concurrent = one_thread and self.ref.device == "cpu" and getattr(backend, "concurrent", False)

    def probabilities(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Give the probabilities (N, classes) of uint8 pixels (N, H, W, C)."""
        result: npt.NDArray[np.float32] = self.session.run({self._input: pixels})["probabilities"]
        return result

    def rank(
        self, probabilities: npt.NDArray[np.float32], top: int = 3, threshold: float = 0.0
    ) -> tuple[str, tuple[Guess, ...]]:
        """Order one image's probabilities (classes,): its label, and the `top` likeliest labels with theirs.

        The label is `unknown` where the highest probability is below `threshold`. Ties go to the label that comes first.

        Raises:
            UsageError: `top` is below 1 or `threshold` is not within 0 to 1.
            ContractError: a probability is not finite.
        """
        if top < 1:
            raise UsageError(f"the number of labels to show (--top) must be at least 1, not {top}")
        if not 0 <= threshold <= 1:
            raise UsageError(f"the threshold (--threshold) is a probability from 0 to 1, not {threshold}")
        if not np.isfinite(probabilities).all():
            raise ContractError(f"{self.ref}: probabilities that are not finite; do not use this artifact here")
        likeliest = np.argsort(-probabilities, kind="stable")[:top]
        guesses = tuple(Guess(label=self.labels[index], probability=float(probabilities[index])) for index in likeliest)
        return guesses[0].label if guesses[0].probability >= threshold else UNKNOWN, guesses

    def answer(
        self,
        prepared: Prepared,
        probabilities: npt.NDArray[np.float32],
        inference_ms: float,
        top: int = 3,
        threshold: float = 0.0,
        path: str | None = None,
    ) -> Prediction:
        """Make the answer for one prepared image from its probabilities (classes,), by `rank`."""
        label, guesses = self.rank(probabilities, top, threshold)
        took = (prepared.decode_ms, prepared.preprocess_ms, inference_ms)
        decode, preprocess, inference = (round(value, 3) for value in took)
        return Prediction(
            path=path,
            label=label,
            probability=guesses[0].probability,
            top=guesses,
            ms=Milliseconds(decode=decode, preprocess=preprocess, inference=inference),
            sha256=prepared.sha256,
        )

    def predict(
        self,
        found: Iterable[Found],
        batch: int = 1,
        top: int = 3,
        threshold: float = 0.0,
        decode_threads: int = 0,
        patient: bool = True,
    ) -> Generator[Prediction, None, None]:
        """Answer for every image of a source, in order, reading as it goes; a bad image is an answer with `error` set.

        With `decode_threads` the images are read and decoded ahead, and so is the source; with 0 each when it is needed.
        A run is of `batch` images or, with threads and not `patient`, of those among them that are there already. Where
        sessions of one thread can be run by several at once, batches of one are run by the threads that decode: so all
        cores are busy whether it is the decoder or the model that takes its time.

        Raises:
            UsageError: `batch` or `top` is below 1, `decode_threads` below 0, `threshold` not within 0 to 1.
            ContractError: the model gives probabilities that are not finite.
        """
        if batch < 1 or top < 1 or decode_threads < 0:
            raise UsageError("the batch size and the number of labels to show must be at least 1, threads 0 or more")
        prepared = partial(all_ready, preprocess=self.bundle.manifest.preprocess)
        answers = partial(self._answers, top=top, threshold=threshold)
        if not decode_threads:
            remaining = iter(found)
            while chunk := list(prepared(islice(remaining, batch))):
                yield from answers(chunk)
        elif batch == 1 and self._concurrent:

            def each(some: Iterable[Found]) -> Iterator[Prediction]:
                decoded = list(prepared(some))  # first: a model is some times faster when its code is in the cache
                for one in decoded:
                    yield from answers([one])

            with closing(Ahead(found, each, decode_threads, 32 * decode_threads, patient)) as made:
                while one := made.take(1):
                    yield from one
        else:
            with closing(Ahead(found, prepared, decode_threads, batch + 2 * decode_threads, patient)) as images:
                while chunk := images.take(batch):
                    yield from answers(chunk)

    def _answers(self, chunk: Sequence[Ready], top: int, threshold: float) -> list[Prediction]:
        good = [one.result.pixels for one in chunk if isinstance(one.result, Prepared)]
        start = perf_counter()
        probabilities = iter(self.probabilities(np.stack(good)) if good else ())
        share = 1e3 * (perf_counter() - start) / max(1, len(good))
        return [
            self.answer(one.result, next(probabilities), share, top, threshold, one.name)
            if isinstance(one.result, Prepared)
            else Prediction(path=one.name, error=printable(one.result))
            for one in chunk
        ]

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.__exit__(None, None, None)


def artifact_for(bundle: Bundle, ref: BackendRef, backend: Backend | None = None) -> Artifact:
    """Choose the artifact a backend is to run: the one named, else the default one if it reads it, else the first.

    Raises:
        UsageError: no artifact of the bundle has a format that the backend reads.
    """
    if ref.artifact:
        return bundle.artifact(ref.artifact)
    formats = (backend or registry.get(registry.BACKENDS, ref.backend)).formats
    names = [bundle.manifest.default_artifact, *bundle.manifest.artifacts]
    for artifact in map(bundle.artifact, names):
        if artifact.format in formats:
            return artifact
    raise UsageError(f"{bundle.where}: holds no artifact that {ref.backend} reads ({', '.join(formats)})")
