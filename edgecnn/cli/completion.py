"""`edgecnn completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    Example:
      edgecnn completion bash > ~/.local/share/bash-completion/completions/edgecnn
    """
    from edgecnn.cli import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this version of click has no completion for {shell}")
    click.echo(kind(cli, {}, "edgecnn", "_EDGECNN_COMPLETE").source())
