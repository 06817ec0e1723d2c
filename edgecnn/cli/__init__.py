"""The `edgecnn` command: one file a subcommand, imported only when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import IO, Any

import click

from edgecnn import __version__
from edgecnn.errors import EdgecnnError

# In the order in which they are used; help texts and the README follow it.
COMMANDS = ("train", "export", "predict", "parity", "bench", "inspect", "doctor", "demo", "completion")


class _Failure(click.ClickException):
    """An EdgecnnError on its way out: one line on stderr and its own exit code."""

    def __init__(self, error: EdgecnnError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click declares it for the class, we know it per error

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message on one line."""
        click.echo(f"edgecnn: {' '.join(self.message.split())}", err=True)


class LazyGroup(click.Group):
    """A group that imports a subcommand's module when it is named, so that none pays for the others."""

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
        """Turn edgecnn's errors into one line and an exit code."""
        try:
            return super().invoke(ctx)
        except EdgecnnError as error:
            raise _Failure(error) from error
        except KeyboardInterrupt:
            click.echo("edgecnn: interrupted; files already written are whole", err=True)
            ctx.exit(130)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgecnn")
def cli() -> None:
    """From labelled images to a compact CNN on an edge box, with proof that it answers the same there.

    Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 a crash, 2 a mistake in what was
    given, 3 the verdict is no.
    """


def main() -> None:
    """Run the command line."""
    cli(prog_name="edgecnn")
