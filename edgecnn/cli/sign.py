"""`edgecnn sign`."""

from __future__ import annotations

from pathlib import Path

import click

from edgecnn.cli.options import existing


@click.command("sign")
@click.argument("bundle", type=existing)
@click.argument("key", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="PRIVATE")
def command(bundle: Path, key: Path) -> None:
    """Sign BUNDLE, a folder, with a PRIVATE Ed25519 key, in place of a signature that it has.

    The signature is over the manifest, which holds the hash of every other file, and lies beside it; a zip of the folder
    keeps it. `edgecnn verify --key` holds a bundle to the public key. A key with a password wants it in EDGECNN_KEY_PASSWORD.

    \b
    Examples:
      edgecnn sign bundles/photos release.pem
      edgecnn verify bundles/photos --key release.pub.pem
      openssl genpkey -algorithm ed25519 -out release.pem && openssl pkey -in release.pem -pubout -out release.pub.pem
    """  # fmt: skip
    from edgecnn.bundle import sign_bundle

    click.echo(f"{bundle}: signed by {sign_bundle(bundle, key)}")
