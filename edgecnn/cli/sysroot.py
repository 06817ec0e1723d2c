"""`edgecnn sysroot`."""

from __future__ import annotations

import click

from edgecnn.cli.options import json_option, print_json, say


@click.command("sysroot")
@click.argument("architecture", type=click.Choice(["arm64"]))
@click.option("--onnxruntime", metavar="VERSION", help="ONNX Runtime to put in.  [default: as installed here]")
@click.option("--numpy", metavar="VERSION", help="numpy to put in.  [default: as installed here]")
@json_option
def command(architecture: str, onnxruntime: str | None, numpy: str | None, as_json: bool) -> None:
    """Get what `emulated@arm64` needs to run models as an Arm device would: a folder with Python and ONNX Runtime.

    Takes Debian's packages by apt-get and wheels by pip, about 65 MB, and needs qemu-user-static but not root. The folder,
    180 MB, is EDGECNN_SYSROOT, or lies in edgecnn's cache (EDGECNN_CACHE, or edgecnn in XDG_CACHE_HOME or ~/.cache); one
    made on a Debian machine can be copied to others. One that is there is made anew.

    \b
    Example:
      edgecnn sysroot arm64
      edgecnn parity bundles/photos -c emulated:int8@arm64
    """  # fmt: skip
    from edgecnn.device.sysroot import installed_version, make_sysroot, sysroot_folder
    from edgecnn.errors import UsageError

    folder = sysroot_folder()
    if folder is None:
        raise UsageError("there is no home to keep the sysroot in: name its folder in EDGECNN_SYSROOT")
    versions = {"onnxruntime": onnxruntime, "numpy": numpy}
    versions = {name: version or installed_version(name) for name, version in versions.items()}
    if None in versions.values():
        missing = next(name for name, version in versions.items() if version is None)
        raise UsageError(f"{missing} is not installed here: say which version to put in with --{missing}")
    made = make_sysroot(folder, str(versions["onnxruntime"]), str(versions["numpy"]), say)
    if as_json:
        print_json(made)
    else:
        click.echo(f"{folder}: Python {made.python}, onnxruntime {made.onnxruntime}, numpy {made.numpy}")
