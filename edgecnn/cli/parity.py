"""`edgecnn parity`."""

from __future__ import annotations

from pathlib import Path

import click

from edgecnn.cli.options import backend_type, candidates_option, existing, json_option, max_drop_option, print_json, say
from edgecnn.spec import BackendRef


@click.command("parity")
@click.argument("bundle", type=existing)
@click.option(
    "-r",
    "--reference",
    type=backend_type,
    help="What the candidates are compared with.  [default: torch where installed, else the goldens]",
)
@candidates_option("What is compared; may be repeated.  [default: onnxruntime with every ONNX artifact]")
@click.option("--data", help="Labelled images for the second question.  [default: where the bundle's came from]")
@max_drop_option(None, "the bundle's own")
@json_option
def command(
    bundle: Path,
    reference: BackendRef | None,
    candidates: tuple[BackendRef, ...],
    data: str | None,
    max_drop: float | None,
    as_json: bool,
) -> None:
    """Check that backends agree on BUNDLE: the same computation, and the same decisions.

    The first question is asked against the model in float64, in units of torch float32's own error; the second on
    labelled test images, paired, and passes only when the drop is shown to be within the budget. Without a data set
    the goldens in the bundle answer the first. Exit code 3 unless all that was measured passes.

    \b
    Example:
      edgecnn parity bundles/photos -r torch -c onnxruntime:int8
    """  # fmt: skip
    import msgspec

    from edgecnn.bundle import Bundle
    from edgecnn.data.of_bundle import find_test_images
    from edgecnn.errors import VerdictError
    from edgecnn.parity import Verdict, compare, default_refs
    from edgecnn.report.parity import parity_text

    opened = Bundle.open(bundle)
    default_reference, default_candidates = default_refs(opened)
    reference = reference or default_reference
    images = None
    if reference is not None:
        images, note = find_test_images(opened.manifest, data)
        if note:
            say(f"edgecnn: {note}")
    elif data is not None:
        raise click.UsageError(
            "--data needs a reference to compare decisions with: -r onnxruntime:fp32, or install torch"
        )
    tolerance = opened.manifest.tolerance
    if max_drop is not None:
        tolerance = msgspec.structs.replace(tolerance, max_drop=max_drop)
    report = compare(opened, reference, candidates or default_candidates, images, tolerance)
    if as_json:
        print_json(report)
    else:
        click.echo(parity_text(report))
    if report.verdict is not Verdict.PASS:
        raise VerdictError(f"parity of {opened.manifest.name}: {report.verdict.value}")
