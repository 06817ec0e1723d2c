"""The `edgecnn` command: one file a subcommand, imported only when it is called."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import IO, Any, NoReturn

import click

from edgecnn import __version__
from edgecnn.errors import EdgecnnError, LostProcessError

# In the order in which they are used; help texts and the README follow it.
COMMANDS = (
    "train",
    "data",
    "export",
    "quantize",
    "sensitivity",
    "search",
    "sign",
    "verify",
    "tune",
    "predict",
    "serve",
    "deploy",
    "parity",
    "bench",
    "inspect",
    "doctor",
    "sysroot",
    "demo",
    "completion",
)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a stream to a full disk raises, without a name
_NAMELESS = (*_NO_ROOM, errno.EIO)


class _Failure(click.ClickException):
    """An error on its way out: one line on stderr and its own exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for the class, we know it per error

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message on one line; of processes under torchrun, which fail alike, the first does so."""
        if os.environ.get("LOCAL_RANK", "0") != "0" and not isinstance(self.__cause__, LostProcessError):
            time.sleep(10)  # torchrun ends all when one ends: the first is to be that one
            return
        click.echo(f"edgecnn: {' '.join(self.message.split())}", err=True)


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn what is the user's to mend into one line: edgecnn's errors, click's, and files that cannot be made."""
    try:
        yield
    except EdgecnnError as error:
        raise _Failure(str(error), error.exit_code) from error
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "edgecnn"
        raise _Failure(f"{error.format_message()} (see `{command} --help`)", error.exit_code) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None and error.errno not in _NAMELESS:
            raise
        said = f"{error.filename}: {error.strerror}" if error.filename is not None else _unwritten(error)
        raise _Failure(said, EdgecnnError.exit_code) from error


def _unwritten(error: OSError) -> str:
    if error.errno == errno.EIO:  # a disk, or a terminal that is gone, and it may have been read from as well
        return f"reading or writing failed ({error.strerror}): see what is wrong with the disk, and run this again"
    return f"the output cannot be written ({error.strerror}): make room where it goes, and run this again"


class LazyGroup(click.Group):
    """A group that imports a subcommand's module when it is named, so that none pays for the others."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the group's own arguments; errors leave as one line."""
        with _one_line():
            return super().make_context(info_name, args, parent, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the subcommands in their order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one subcommand."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"edgecnn.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the commands there are when one is misspelt."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}; there are: {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; errors leave as one line and an exit code."""
        try:
            with _one_line():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                click.echo("edgecnn: interrupted; files already written are whole", err=True)
            ctx.exit(130)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgecnn")
def cli() -> None:
    """From labelled images to a compact CNN on an edge box, with proof that it answers the same there.

    Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 a crash, 2 a mistake in what was
    given, 3 the verdict is no.
    """


def main() -> NoReturn:
    """Run the command line and leave at once.

    Everything is written and closed by then; to take the interpreter down module by module, ONNX Runtime and numpy
    with it, costs 40 ms, a sixth of a whole `edgecnn predict`.
    """
    _open_streams()
    code = 0
    try:
        cli(prog_name="edgecnn")
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:
        if not code and error.errno in _NAMELESS:
            click.echo(f"edgecnn: {_unwritten(error)}", err=True)
            code = EdgecnnError.exit_code
        code = code or 1  # nobody reads it any more
    if "edgecnn.archive" in sys.modules:
        sys.modules["edgecnn.archive"].remove_unpacked()
    os._exit(code)


def _open_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr (`>&-`) the null device in their place.

    A file that is opened would get the free number, and what a library writes to stdout or stderr would end up in it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # what this process starts would be without it again
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 -- as long as the process
