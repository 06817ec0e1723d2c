"""`edgecnn parity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecnn.cli.options import backend_type, candidates_option, existing, json_option, max_drop_option, print_json, say
from edgecnn.cli.parity_options import ask, check_replay, make_tolerance, output_options

if TYPE_CHECKING:
    from edgecnn.parity import ParityReport
    from edgecnn.parity.recording import Recording


@click.command("parity")
@click.argument("subject", type=existing, required=False, metavar="BUNDLE|MODEL.onnx")
@click.option(
    "-r",
    "--reference",
    type=backend_type,
    help="What the candidates are compared with.  [default: torch where installed, else the goldens; of MODEL.onnx its graph in float64]",
)
@candidates_option("What is compared; may be repeated, and name another .onnx file.  [default: onnxruntime with every ONNX artifact]")  # fmt: skip
@max_drop_option(None, "the bundle's own, or 1")
@output_options
@json_option
def command(
    subject: Path | None, max_drop: float | None, noise_multiple: float | None, as_json: bool, **asked: Any
) -> None:
    """Check that backends agree on BUNDLE or MODEL.onnx: the same computation, and the same decisions.

    The first question is asked against the model in float64, in units of torch float32's own error; the second on
    labelled test images, paired, and passes only when the drop is shown to be within the budget. Without a data set
    the goldens in the bundle answer the first. Besides: whether candidates answer the same when asked again, one image at a
    time, and with other threads. Exit code 3 unless all that was measured passes.

    \b
    Examples:
      edgecnn parity bundles/photos -r torch -c onnxruntime:int8
      edgecnn parity model.onnx -c openvino -c onnxruntime:model.int8.onnx --data images/
      edgecnn parity --replay box.evidence --max-drop 0.5
    """  # fmt: skip
    from edgecnn.errors import VerdictError
    from edgecnn.parity import Verdict, judge, record
    from edgecnn.report.parity import parity_text

    check_replay(subject, asked)
    located: list[Any] = []
    if asked["replay"] is not None:
        report, recording = _replayed(asked["replay"], subject, max_drop, noise_multiple)
    else:
        sides = {name: asked[name] for name in ("reference", "candidates", "data", "random")}
        check = ask(subject or Path(), options=asked, **sides)
        tolerance = make_tolerance(check.subject.tolerance, max_drop, noise_multiple)
        recording = record(check.subject, check.reference, check.candidates, check.samples, tolerance)
        if asked["keep"]:
            from edgecnn.parity.evidence import write_evidence

            write_evidence(asked["keep"], recording)
            say(f"edgecnn: kept every answer in {asked['keep']}")
        report = judge(recording)
        if asked["localize"]:
            from edgecnn.parity.locating import locate

            located = locate(check.subject, check.reference, check.samples, report, say)
    _write(report, recording, asked["html"], asked["junit"], located)
    if as_json:
        print_json(report if not asked["localize"] else _with(report, located))
    else:
        click.echo("\n\n".join([*_located_text(located), parity_text(report)]))
    if report.verdict is not Verdict.PASS:
        raise VerdictError(f"parity of {report.bundle}: {report.verdict.value}")


def _replayed(
    first: Path, second: Path | None, max_drop: float | None, noise_multiple: float | None
) -> tuple[ParityReport, Recording]:
    from edgecnn.parity import judge
    from edgecnn.parity.evidence import read_evidence

    before = read_evidence(first)
    tolerance = make_tolerance(before.head.tolerance, max_drop, noise_multiple)
    if second is None:
        return judge(before, tolerance), before
    from edgecnn.parity.replay import compare_recordings

    after = read_evidence(second)
    return compare_recordings(before, after, tolerance), after


def _write(
    report: ParityReport, recording: Recording, html: Path | None, junit: Path | None, located: list[Any]
) -> None:
    from edgecnn.files import write_atomic

    if html is not None:
        from edgecnn.report.localize import localization_png
        from edgecnn.report.parity_page import parity_page

        png = localization_png(located[0]) if located else None
        write_atomic(html, parity_page(report, recording.pictures, png).encode())
        say(f"edgecnn: wrote {html}")
    if junit is not None:
        from edgecnn.report.junit import junit_xml

        write_atomic(junit, junit_xml(report).encode())
        say(f"edgecnn: wrote {junit}")


def _located_text(located: list[Any]) -> list[str]:
    if not located:
        return []
    from edgecnn.report.localize import localization_text

    return [localization_text(one) for one in located]


def _with(report: ParityReport, located: list[Any]) -> dict[str, Any]:
    import msgspec

    return {**msgspec.to_builtins(report), "localizations": located}
