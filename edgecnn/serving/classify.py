"""`POST /predict`: one encoded image in, labels and probabilities out, as `edgecnn predict --json` gives them."""

from __future__ import annotations

import functools
from email.message import Message

from aiohttp import web

from edgecnn.backends.base import Array
from edgecnn.decoding import Prepared, prepare
from edgecnn.serving.limits import RefusedError
from edgecnn.serving.service import Service
from edgecnn.spec import Preprocess, to_json


def routes(service: Service) -> list[web.RouteDef]:
    """Give the route."""
    return [web.post("/predict", functools.partial(_predict, service))]


async def _predict(service: Service, request: web.Request) -> web.Response:
    unknown = next((name for name in request.query if name not in ("top", "threshold")), None)
    if unknown is not None:  # a threshold that is misspelt would be none
        raise RefusedError(400, f"/predict takes top and threshold, and not {unknown[:40]!r}")
    top, threshold = _number(request, "top", 3), _number(request, "threshold", 0.0)
    kind = request.headers.get("Content-Type", "")
    make = functools.partial(_prepare, service.bundle.manifest.preprocess, kind)
    prepared, outcome = await service.answer(request, make)
    service.metrics.stage("decode")(prepared.decode_ms / 1e3)
    service.metrics.stage("preprocess")(prepared.preprocess_ms / 1e3)
    took = 1e3 * outcome.computed / outcome.rows
    answer = service.predictor.answer(prepared, outcome.outputs["probabilities"][0], took, int(top), threshold)
    return web.Response(body=to_json(answer, 0), content_type="application/json")


def _number(request: web.Request, name: str, default: float) -> float:
    written = request.query.get(name)
    try:
        return default if written is None else type(default)(written)
    except ValueError:
        raise RefusedError(400, f"{name}={written[:40]} is not a number" if written else f"{name} is empty") from None


def _prepare(preprocess: Preprocess, kind: str, body: bytes) -> tuple[Array, Prepared]:
    """Make the model's rows (1, H, W, C) of a body that is an image, or a form with one."""
    data = only_file(body, kind) if kind.lower().startswith("multipart/form-data") else body
    prepared = prepare(data, preprocess)
    return prepared.pixels[None], prepared


def only_file(body: bytes, kind: str) -> bytes:
    """Take the one file out of a multipart form (RFC 7578); fields that are no files are passed over.

    Raises:
        RefusedError: it is no such form, is cut short, or holds no file or several; status 400.
    """
    message = Message()
    message["Content-Type"] = kind
    boundary = message.get_boundary("")
    mark = b"\r\n--" + str(boundary).encode("ascii", "replace")
    parts = (b"\r\n" + body).split(mark)
    if not boundary or len(parts) < 3 or not parts[-1].startswith(b"--"):
        raise RefusedError(400, "the body is no whole multipart form")
    files = []
    for part in parts[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        if b"filename" in head.lower():
            files.append(content)
    if len(files) != 1:
        raise RefusedError(400, f"the form holds {len(files)} files; one image is answered at a time")
    return files[0]
