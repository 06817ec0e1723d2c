"""`edgecnn serve`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecnn.cli.options import backend_type, existing, key_option, say
from edgecnn.errors import MissingPackageError, UsageError
from edgecnn.spec import BackendRef

if TYPE_CHECKING:
    from edgecnn.serving.access import Access

_LONGEST = 4096  # bytes of a token's file: what a header takes


@click.command("serve")
@click.argument("bundle", type=existing)
@key_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; other machines reach 0.0.0.0.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: one that is free.")
@click.option(
    "-b", "--backend", type=backend_type, help="What runs it.  [default: this machine's profile, else onnxruntime]"
)
@click.option(
    "--threads", type=click.IntRange(1, 4096), help="Threads of the backend.  [default: the profile's, else all]"
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 64),
    help="Requests that are run together, if no answer changes by it.  [default: 8]",
)
@click.option(
    "--max-delay-ms",
    type=click.FloatRange(0, 1000),
    default=0.0,
    show_default=True,
    help="How long a run waits for others.",
)
@click.option(
    "--queue", type=click.IntRange(1), default=256, show_default=True, help="Requests in flight; one more gets 503."
)
@click.option(
    "--max-body",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    metavar="MB",
    help="Largest body of a request.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="For a body to come, and then for its answer.",
)
@click.option(
    "--token",
    envvar="EDGECNN_TOKEN",
    show_envvar=True,
    help="What requests must bear; seen by others of this machine, unlike a file.",
)
@click.option(
    "--token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A file that holds the token."
)
@click.option("--no-auth", is_flag=True, help="Answer other machines without a token.")
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Another name by which a loopback server may be called.",
)
def command(
    bundle: Path,
    key: Path | None,
    host: str,
    port: int,
    backend: BackendRef | None,
    threads: int | None,
    max_batch: int | None,
    max_delay_ms: float,
    queue: int,
    max_body: int,
    timeout: float,
    token: str | None,
    token_file: Path | None,
    no_auth: bool,
    hosts: tuple[str, ...],
) -> None:
    """Serve BUNDLE over HTTP: a page, POST /predict, the Open Inference Protocol, /metrics.

    One line on stderr says where, once requests are answered. SIGTERM and Ctrl-C let what is in flight be answered and
    end with exit code 0.

    \b
    Examples:
      edgecnn serve bundles/photos
      curl --data-binary @one.jpg 'http://127.0.0.1:8000/predict?top=5'
      edgecnn serve bundles/photos --host 0.0.0.0 --token-file /etc/edgecnn/token
    """  # fmt: skip
    _need_packages()
    from edgecnn.bundle import Bundle
    from edgecnn.device.profile import chosen
    from edgecnn.serving.app import SERVICE, make_app
    from edgecnn.serving.limits import Limits
    from edgecnn.serving.run import run

    access = _access(host, _token(token, token_file), no_auth, hosts)
    limits = Limits(
        body=max_body << 20, bodies=max(Limits.bodies, 2 * max_body << 20), queue=queue, max_batch=max_batch,
        max_delay=max_delay_ms / 1e3, receive=timeout, answer=timeout,
    )  # fmt: skip
    opened = Bundle.open(bundle, key)
    choice = chosen(opened, backend, threads)
    app = make_app(opened, choice.ref, choice.options, limits, access=access)
    service = app[SERVICE]
    for notice in filter(None, (choice.notice, service.notice)):
        say(f"edgecnn: {notice}")
    what = f"{opened.manifest.name} on {service.predictor.ref}, {_together(service.max_batch)}"
    run(app, host, port, lambda url: say(f"edgecnn: {url} serves {what}; Ctrl-C ends it"))


def _together(batch: int) -> str:
    return "one request a run" if batch == 1 else f"up to {batch} requests a run"


def _need_packages() -> None:
    for module in ("aiohttp", "prometheus_client"):
        if find_spec(module) is None:
            raise MissingPackageError(
                f"serve needs the package {module}, which is not here: pip install 'edgecnn[serve]'"
            )


def _token(token: str | None, file: Path | None) -> str | None:
    if file is None:
        return token
    if token is not None:
        raise UsageError("--token and --token-file (or EDGECNN_TOKEN) are both given; give one")
    try:
        with file.open("rb") as stream:
            written = stream.read(_LONGEST + 1)
        found = written.decode("ascii").strip()
    except UnicodeDecodeError:
        found = ""
    if not found or not found.isprintable() or len(written) > _LONGEST:
        raise UsageError(f"{file}: a token is one line of printable ASCII of at most {_LONGEST} bytes, and not empty")
    return found


def _access(host: str, token: str | None, no_auth: bool, hosts: tuple[str, ...]) -> Access:
    """Decide who may ask; a server that other machines reach asks for a token, or is told not to."""
    from edgecnn.serving.access import Access, is_loopback

    if token is not None and no_auth:
        raise UsageError("a token and --no-auth are both given; give one")
    if token is None and not no_auth and not is_loopback(host):
        raise UsageError(f"--host {host} lets other machines in: give --token-file (or EDGECNN_TOKEN), or --no-auth")
    return Access(token, loopback=is_loopback(host), hosts=tuple(name.lower() for name in hosts))
