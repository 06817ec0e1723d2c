"""`edgecnn deploy`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecnn.cli.options import existing, json_option, print_json, say
from edgecnn.errors import UsageError, VerdictError

if TYPE_CHECKING:
    from edgecnn.device.deploy import Deployed, Installation, Reach
    from edgecnn.ssh import Destination


@click.command("deploy")
@click.argument("bundle", required=False, metavar="BUNDLE")
@click.argument("box", required=False, metavar="user@host[:path]")
@click.option("--install", is_flag=True, help="Install edgecnn there, in an environment of its own.")
@click.option("--wheel", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The wheel to install.  [default: packed from the edgecnn that runs here]")  # fmt: skip
@click.option("--wheelhouse", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of wheels for the box, which then asks no package index.")  # fmt: skip
@click.option("--extras", default="cpu", show_default=True, help="Extras to install, for example cpu,serve.")
@click.option("--python", metavar="PATH", help="The interpreter there: it makes the environment, or runs the bundle without one.  [default: python3]")  # fmt: skip
@click.option("--key", type=existing, help="Public key that the bundle has to be signed by, here and there.")
@click.option("--force", is_flag=True, help="Put the bundle in place although verify says no there.")
@click.option("--rollback", is_flag=True, help="Put back what was in place before; takes no BUNDLE.")
@click.option("-F", "config", type=click.Path(exists=True, dir_okay=False), help="Configuration file for ssh.")
@click.option("--ssh-option", "ssh_options", multiple=True, metavar="NAME=VALUE", help="An option for ssh, as its -o takes it; may be repeated.")  # fmt: skip
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the report of verify, as JSON.")  # fmt: skip
@json_option
def command(bundle: str | None, box: str | None, rollback: bool, as_json: bool, **asked: Any) -> None:
    """Copy BUNDLE to a box over ssh, verify it there, and only then put it in place.

    The system's own ssh connects, once, with your configuration, agent and jump hosts; without a terminal it asks nothing.
    What is there already is not copied again, and a copy that was broken off goes on. Until the last step, which is one
    rename, what runs there is left alone. The bundle is then read there as PATH/current/bundle, and what was in place before
    is kept. PATH begins at the home folder; without one it is `edgecnn`. Exit code 3 where verify says no.

    \b
    Examples:
      edgecnn deploy bundles/photos pi@192.168.1.7 --install
      edgecnn deploy bundles/photos pi@192.168.1.7:/opt/photos -o report.json
      edgecnn deploy --rollback pi@192.168.1.7:/opt/photos
    """  # fmt: skip
    from edgecnn.device.deploy import Reach
    from edgecnn.ssh import Destination

    options = [word for option in asked["ssh_options"] for word in ("-o", option)]
    reach = Reach(options=tuple(options), python=asked["python"], config=asked["config"])
    if rollback:
        _roll_back(_destination(bundle, box), reach, as_json)
        return
    if bundle is None:
        raise click.UsageError("Missing argument 'BUNDLE'.")
    if box is None:
        raise click.UsageError("Missing argument 'user@host[:path]'.")
    _deploy(existing_path(bundle), Destination.parse(box), reach, as_json, asked)


def _destination(first: str | None, second: str | None) -> Destination:
    """Read the one argument of --rollback, beside which what belongs to a deployment would be passed over in silence.

    Raises:
        click.UsageError: there is none, a second one, or such an option.
        UsageError: it is no destination.
    """
    from edgecnn.ssh import Destination

    context = click.get_current_context()
    taken = ("bundle", "box", "rollback", "python", "config", "ssh_options", "as_json")
    for one in context.command.params:
        given = one.name and context.get_parameter_source(one.name) is not click.core.ParameterSource.DEFAULT
        if given and one.name not in taken:
            raise click.UsageError(f"{one.opts[-1]} is for a deployment; --rollback takes none of it")
    if first is None:
        raise click.UsageError("Missing argument 'user@host[:path]'.")
    if second is not None:
        raise click.UsageError("--rollback takes no BUNDLE, only user@host[:path]: it puts back what was there before")
    return Destination.parse(first)


def _writable(path: Path | None) -> None:
    """Hold the report's place before anything is deployed, not after.

    Raises:
        UsageError: no file can be written there.
    """
    if path is None:
        return
    there = next(folder for folder in path.absolute().parents if os.path.lexists(folder))  # below it folders are made
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise UsageError(f"{path}: cannot be written, {there} is no folder to write in; choose another -o")


def existing_path(text: str) -> Path:
    """Take a bundle's path as other commands do."""
    path: Path = existing.convert(text, None, click.get_current_context())
    return path


def _deploy(path: Path, destination: Any, reach: Reach, as_json: bool, asked: dict[str, Any]) -> None:
    from edgecnn.device.deploy import deploy
    from edgecnn.files import write_atomic
    from edgecnn.report.deploy import deploy_text, report_text
    from edgecnn.spec import to_json

    _writable(asked["out"])
    found = deploy(
        path, destination, reach, _installation(asked), key=asked["key"], force=asked["force"], say=say
    )  # fmt: skip
    if asked["out"]:
        write_atomic(asked["out"], to_json(found.report))
    if as_json:
        print_json(found)
    else:
        click.echo(report_text(found))
    say(deploy_text(found))
    _judge(found)


def _judge(found: Deployed) -> None:
    if found.reason is None:
        return
    if not found.swapped:
        raise VerdictError(f"{found.box}: not put in place: {found.reason}")
    say(f"edgecnn: {found.box}: put in place by --force, although {found.reason}")


def _installation(asked: dict[str, Any]) -> Installation | None:
    """Gather what is to be installed.

    Raises:
        click.UsageError: something to install was named, and installing not asked for.
    """
    from edgecnn.device.deploy import Installation

    if asked["install"]:
        return Installation(wheel=asked["wheel"], wheelhouse=asked["wheelhouse"], extras=asked["extras"])
    if asked["wheel"] or asked["wheelhouse"]:
        raise click.UsageError("--wheel and --wheelhouse are for --install")
    return None


def _roll_back(destination: Any, reach: Reach, as_json: bool) -> None:
    from edgecnn.device.deploy import roll_back

    found = roll_back(destination, reach)
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found.box}: {found.release} is current again, {found.left} is not")
