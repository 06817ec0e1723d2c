"""`edgecnn export`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecnn.cli.options import existing, json_option, max_drop_option, print_json, say
from edgecnn.spec import TARGETS

if TYPE_CHECKING:
    from edgecnn.bundle import Bundle


@click.command("export")
@click.argument("run", type=existing, metavar="RUN|BUNDLE")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--layout",
    type=click.Choice(["bundle", "triton", "ort-model-package"]),
    default="bundle",
    show_default=True,
    help="What the folder is for: edgecnn, Triton and KServe, or ONNX Runtime's ModelPackage (1.32 or newer).",
)
@click.option("--data", help="Where the run's data is now.  [default: where it was]")
@click.option(
    "--target",
    type=click.Choice(["host", *TARGETS]),
    default="any",
    show_default=True,
    help="What reduced precision is made for: a CPU (`any` is safe on all), tensorrt, or cuda with --exporter onnx-fp16.",
)
@click.option("--opset", type=int, help="ONNX opset.  [default: 18, the lowest that is emitted faithfully]")
@click.option(
    "--exporter",
    "exporters",
    multiple=True,
    default=("onnx", "onnx-int8"),
    show_default=True,
    help="Artifacts to write, in order.",
)
@max_drop_option("1.0", "1.0")
@click.option(
    "--force",
    is_flag=True,
    help="Write the bundle although parity fails or int8 does not pay, and say so in its manifest.",
)
@click.option(
    "--sign",
    "key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PRIVATE",
    help="Private Ed25519 key (PEM or OpenSSH) to sign the bundle with; `edgecnn sign` tells how to make one.",
)
@json_option
def command(
    run: Path,
    out: Path,
    layout: str,
    data: str | None,
    target: str,
    opset: int | None,
    exporters: tuple[str, ...],
    max_drop: float,
    force: bool,
    key: Path | None,
    as_json: bool,
) -> None:
    """Export RUN to a bundle: fp32 and int8 ONNX, goldens, manifest.

    Parity is checked before the bundle is written; if it fails, or int8 is not faster on the very target it is made for,
    nothing is written and the exit code is 3. A BUNDLE, which is all that already, can be written in another --layout.

    \b
    Examples:
      edgecnn export runs/photos -o bundles/photos --target arm64
      edgecnn export bundles/photos -o triton/ --layout triton
    """  # fmt: skip
    from edgecnn.bundle import Bundle
    from edgecnn.manifest import MANIFEST

    if run.is_file() or (run / MANIFEST).is_file():
        if layout == "bundle":
            raise click.UsageError(f"{run} is a bundle already; --layout writes it in another form")
        return _write_layout(Bundle.open(run), layout, out, as_json)
    from edgecnn.assemble import ExportOptions, export_bundle
    from edgecnn.host import target_of_host
    from edgecnn.report.parity import parity_text
    from edgecnn.report.text import size
    from edgecnn.runs import open_run_data, read_run
    from edgecnn.spec import Target

    config, metrics = read_run(run)
    chosen: Target = target_of_host() if target == "host" else next(name for name in TARGETS if name == target)
    options = ExportOptions(exporters=exporters, target=chosen, opset=opset, max_drop=max_drop, force=force)
    dataset = open_run_data(config, data)
    if layout != "bundle":
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / (out.name or "bundle")
            export_bundle(run, config, metrics, dataset, bundle, options, say, key)
            return _write_layout(Bundle.open(bundle), layout, out, as_json)
    manifest, report = export_bundle(run, config, metrics, dataset, out, options, say, key)
    if as_json:
        return print_json(manifest)
    for name, record in manifest.artifacts.items():
        default = "  (default)" if name == manifest.default_artifact else ""
        click.echo(f"{name:<11} {size(manifest.files[record.path].size):>10}  {out / record.path}{default}")
    click.echo(parity_text(report))
    if key is not None:
        click.echo(f"signed by {Bundle.open(out).claimed_signer}")
    return None


def _write_layout(bundle: Bundle, layout: str, out: Path, as_json: bool) -> None:
    from edgecnn.layouts import write_layout

    told = write_layout(bundle, layout, out)
    if as_json:
        print_json({"layout": layout, "folder": str(out), "told": told})
    else:
        click.echo("\n".join(told))
