"""The pytest plugin: parity as one line in the tests of any project that ships a bundle.

pytest imports this module at the start of every run, in projects that never use it too, so it imports nothing else;
numpy and the runtimes come with the first fixture that asks for them. `-p no:edgecnn` leaves it out::

    def test_the_box_answers_alike(edgecnn_parity):
        edgecnn_parity(candidate="onnxruntime:int8", max_drop=0.01)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from edgecnn.bundle import Bundle
    from edgecnn.data.dataset import LabelledImages
    from edgecnn.parity import ParityReport
    from edgecnn.spec import BackendRef

OPTION = "edgecnn_bundle"
_HELP = "the bundle, a folder or its zip, that the fixtures edgecnn_bundle and edgecnn_parity use"


class Parity(Protocol):
    """What the fixture `edgecnn_parity` is: `edgecnn parity` as a function that raises unless all that was measured passes."""

    def __call__(
        self,
        bundle: Bundle | Path | str | None = None,
        reference: str | None = None,
        candidate: str | Sequence[str] | None = None,
        data: LabelledImages | str | None = None,
        max_drop: float | None = None,
    ) -> ParityReport:
        """Compare and return the report.

        Args:
            bundle: by default the one of `--edgecnn-bundle`; without that the test is skipped.
            reference: BACKEND[:ARTIFACT][@DEVICE], or `goldens`; by default torch where it is installed, else the goldens.
            candidate: one BACKEND[:ARTIFACT][@DEVICE] or several; by default ONNX Runtime with every ONNX artifact.
            data: labelled images for the second question, by default where the bundle's came from.
            max_drop: the accuracy that may be lost, as a fraction; by default the bundle's own.

        Raises:
            AssertionError: the verdict is not PASS; the message is the report.
            EdgecnnError: nothing could be compared; the message says what to do.
        """


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--edgecnn-bundle`, and the same as a setting, which is relative to the file that it is in."""
    parser.getgroup("edgecnn").addoption("--edgecnn-bundle", metavar="PATH", help=_HELP)
    parser.addini(OPTION, _HELP, default="")


@pytest.fixture(scope="session")
def edgecnn_bundle(request: pytest.FixtureRequest) -> Bundle:
    """Return the bundle of `--edgecnn-bundle` opened, or skip the test where none is named."""
    path = _named(request.config)
    if path is None:
        pytest.skip(f"no bundle: name one by --edgecnn-bundle PATH, or by {OPTION} in pytest's settings")
    from edgecnn.bundle import Bundle
    from edgecnn.errors import BundleError

    try:
        return Bundle.open(path)
    except BundleError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def edgecnn_parity(request: pytest.FixtureRequest) -> Parity:
    """Return a function that checks parity, and fails the test with the report unless the verdict is PASS."""

    def check(
        bundle: Bundle | Path | str | None = None,
        reference: str | None = None,
        candidate: str | Sequence[str] | None = None,
        data: LabelledImages | str | None = None,
        max_drop: float | None = None,
    ) -> ParityReport:
        __tracebackhide__ = True  # what failed is told by the report, not by lines of this file
        from edgecnn.errors import EdgecnnError

        try:
            opened = request.getfixturevalue(OPTION) if bundle is None else _opened(bundle)
            report, text = _compare(opened, reference, candidate, data, max_drop)
        except EdgecnnError as error:
            raise error.with_traceback(None) from None
        assert report.verdict == "PASS", text  # noqa: S101 -- an assertion is what a test is to fail by
        return report

    return check


def _named(config: pytest.Config) -> Path | None:
    """Find the bundle's path: the command line's from where pytest was started, the setting's from its file."""
    given, stated = config.getoption(OPTION), config.getini(OPTION)
    if given:
        return config.invocation_params.dir / str(given)
    home = config.rootpath if config.inipath is None else config.inipath.parent
    return home / str(stated) if stated else None


def _opened(bundle: Bundle | Path | str) -> Bundle:
    from edgecnn.bundle import Bundle

    return Bundle.open(Path(bundle)) if isinstance(bundle, (str, Path)) else bundle


def _compare(
    bundle: Bundle,
    reference: str | None,
    candidate: str | Sequence[str] | None,
    data: LabelledImages | str | None,
    max_drop: float | None,
) -> tuple[ParityReport, str]:
    import msgspec

    from edgecnn.parity import compare, default_refs
    from edgecnn.report.parity import parity_text
    from edgecnn.spec import BackendRef

    usual, artifacts = default_refs(bundle)
    if reference is not None:
        usual = None if reference == "goldens" else BackendRef.parse(reference)
    texts = [candidate] if isinstance(candidate, str) else candidate
    candidates = artifacts if texts is None else [BackendRef.parse(text) for text in texts]
    images, note = _images(bundle, usual, data)
    tolerance = bundle.manifest.tolerance
    if max_drop is not None:
        tolerance = msgspec.structs.replace(tolerance, max_drop=max_drop)
    report = compare(bundle, usual, candidates, images, tolerance)
    return report, "\n".join([parity_text(report), *([note] if note else [])])


def _images(
    bundle: Bundle, reference: BackendRef | None, data: LabelledImages | str | None
) -> tuple[LabelledImages | None, str | None]:
    """Find the labelled images as the command does, and a note on them.

    Raises:
        UsageError: there are images and no reference whose decisions they could be compared with.
    """
    if reference is None and data is not None:
        from edgecnn.errors import UsageError

        raise UsageError(
            "data needs a reference to compare decisions with: onnxruntime:fp32, or torch; goldens have none"
        )
    if reference is None or not (data is None or isinstance(data, str)):
        return data if not isinstance(data, str) else None, None
    from edgecnn.data.of_bundle import find_test_images

    return find_test_images(bundle.manifest, data)
