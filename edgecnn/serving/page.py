"""The web page at `/`: its own files, the model for the browser, and onnxruntime-web's files, all from this machine."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from aiohttp import web
from PIL import Image

from edgecnn.backends.onnxruntime_web import find_package
from edgecnn.bundle import Bundle
from edgecnn.errors import EdgecnnError, MissingPackageError
from edgecnn.manifest import MANIFEST
from edgecnn.predict import artifact_for
from edgecnn.spec import BackendRef, to_json

FOLDER = Path(__file__).parent / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
HEADERS = {
    # Nothing comes from elsewhere, nothing goes elsewhere, and no script but the page's own files runs.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    # A page that is isolated from other origins gets a clock of microseconds instead of a tenth of a millisecond.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, but asked for again: another bundle may be served here next
}
CHUNK = 1 << 16
_FAINT = 64  # a pixel that differs from the ground by more is ink
_FEW = 0.1  # of the corners, that ink may reach
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes(bundle: Bundle, ref: BackendRef | None = None) -> list[web.RouteDef]:
    """List the page's routes; `ref` is what the server itself runs, which the page names.

    Paths: `/`, `/page/NAME` and `/ort/NAME`, which load before anybody can type a token and tell nothing of the bundle;
    `/bundle/manifest.json`, `/bundle/browser.json` and the ONNX files of `browser_artifacts`, which do.
    """
    ours = {path.name: path for path in FOLDER.iterdir() if path.suffix in KINDS}
    shown = [
        web.get("/", _file(lambda: ours, "index.html")),
        web.get("/page/{name}", _file(lambda: ours)),
        web.get("/ort/{name}", _file(_package_files)),
        web.get(f"/bundle/{MANIFEST}", _json(lambda: to_json(bundle.manifest))),
        web.get("/bundle/browser.json", _json(lambda: _for_the_browser(bundle, ref))),
    ]
    models = {bundle.manifest.artifacts[name].path for name in browser_artifacts(bundle)}
    return shown + [web.get(f"/bundle/{path}", _model(bundle, path)) for path in sorted(models)]


def browser_artifacts(bundle: Bundle) -> tuple[str, ...]:
    """Name the artifacts that the page may load: ONNX files, the default one first, then those of fp32."""
    records, default = bundle.manifest.artifacts, bundle.manifest.default_artifact
    onnx = [name for name, record in records.items() if record.format == "onnx"]
    return tuple(sorted((name for name in onnx if name == default or records[name].precision == "fp32"),
                        key=lambda name: name != default))  # fmt: skip


def resizes_columns_first() -> bool:
    """Say whether this Pillow may resize along columns first, as 13.0 and newer do where many rows go.

    The numbers between the two passes are rounded, so the order shows; the page does as this Pillow does.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (64, 16), dtype=np.uint8)
    image, bilinear = Image.fromarray(pixels), Image.Resampling.BILINEAR
    columns_first = image.resize((16, 9), bilinear).resize((9, 9), bilinear)
    return image.resize((9, 9), bilinear).tobytes() == columns_first.tobytes()


def is_paper_dark(bundle: Bundle) -> bool:
    """Say whether the goldens' borders are dark: then a drawing has light strokes on a dark ground.

    Raises:
        DamagedError: the goldens cannot be read.
    """
    pixels = bundle.goldens().pixels
    edges = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    return bool(np.median(np.concatenate([edge.ravel() for edge in edges])) < 128)


def drawn_share(bundle: Bundle, dark: bool) -> float | None:
    """Say how much of its image a drawing of these takes: the larger side of the ink's box, in the median of the goldens.

    None where the goldens have no plain ground: of photographs more than few corners differ from it.

    Raises:
        DamagedError: the goldens cannot be read.
    """
    pixels = bundle.goldens().pixels.astype(np.int16).max(axis=-1)
    ink = np.abs(pixels - (0 if dark else 255)) > _FAINT
    if ink[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean() > _FEW or not ink.any():
        return None
    shares = [max(_extent(one.any(axis)) for axis in (0, 1)) for one in ink if one.any()]
    return round(float(np.median(shares)), 3)


def _extent(any_ink: npt.NDArray[np.bool_]) -> float:
    """Give the share of a side that lies between its first and its last ink."""
    places = any_ink.nonzero()[0]
    return float(places[-1] + 1 - places[0]) / len(any_ink)


def _for_the_browser(bundle: Bundle, ref: BackendRef | None) -> bytes:
    """Write what the page needs to know beyond the manifest, as JSON."""
    artifacts = [
        {"name": name, "path": record.path, "sha256": bundle.manifest.files[record.path].sha256}
        for name, record in ((name, bundle.manifest.artifacts[name]) for name in browser_artifacts(bundle))
    ]
    server, dark = None, is_paper_dark(bundle)
    if ref is not None:
        runtime = BackendRef(backend=ref.backend, device=ref.device)
        server = {"artifact": artifact_for(bundle, ref).name, "runtime": str(runtime)}
    return to_json(
        {
            "artifacts": artifacts,
            "server": server,
            "dark": dark,
            "share": drawn_share(bundle, dark),
            "columns_first": resizes_columns_first(),
            "problem": _problem(bundle),
        }
    )


def _problem(bundle: Bundle) -> str | None:
    """Say why no browser can run the model, if that is so."""
    try:
        find_package()
    except MissingPackageError as error:
        return str(error)
    return None if browser_artifacts(bundle) else "the bundle holds no ONNX file of fp32, and its default is none"


def _package_files() -> dict[str, Path]:
    return {path.name: path for path in find_package().iterdir() if path.suffix in (".mjs", ".wasm")}


def _file(files: Callable[[], dict[str, Path]], name: str | None = None) -> Answer:
    """Serve one file, or that which the address names, out of those listed: no name can lead to another."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            path = files().get(name or request.match_info["name"])
        except (
            MissingPackageError
        ):  # the page has said so; whoever may not see it does not learn where it is looked for
            path = None
        if path is None:
            raise web.HTTPNotFound
        return web.FileResponse(path, headers={**HEADERS, "Content-Type": KINDS[path.suffix]})

    return answer


def _json(write: Callable[[], bytes]) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return web.Response(body=await asyncio.to_thread(write), headers=_typed("application/json"))
        except EdgecnnError as error:
            return _refused(error)

    return answer


def _model(bundle: Bundle, path: str) -> Answer:
    """Serve one file of the bundle; it is read and verified once, when it is first asked for, and kept."""
    tag, lock = f'"{bundle.manifest.files[path].sha256}"', asyncio.Lock()

    @functools.cache
    def content() -> bytes:
        return bundle.read(path)

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={**HEADERS, "ETag": tag})
        try:
            async with lock:
                data = await asyncio.to_thread(content)
        except EdgecnnError as error:
            return _refused(error)
        response = web.StreamResponse(headers={**_typed("application/octet-stream"), "ETag": tag})
        response.content_length = len(data)
        await response.prepare(request)
        if request.method != "HEAD":
            for start in range(0, len(data), CHUNK):  # a slow reader costs one piece of memory, not a copy of the model
                await response.write(data[start : start + CHUNK])
        return response

    return answer


def _typed(kind: str) -> dict[str, str]:
    return {**HEADERS, "Content-Type": kind}


def _refused(error: EdgecnnError) -> web.Response:
    return web.Response(status=500, body=to_json({"error": str(error)}, indent=0), headers=_typed("application/json"))
