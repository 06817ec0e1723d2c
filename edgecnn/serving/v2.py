"""The routes of the Open Inference Protocol, version 2, over HTTP; what is said on them is in `protocol`."""

from __future__ import annotations

import functools
import math
from typing import Any

from aiohttp import web

from edgecnn.backends.base import Array
from edgecnn.serving import protocol
from edgecnn.serving.limits import RefusedError
from edgecnn.serving.protocol import HEADER_LENGTH, VERSION, Inference
from edgecnn.serving.service import Service
from edgecnn.spec import to_json

INLINE = 64 << 10  # bytes: tensors no larger are read at once, for a thread would cost more than the work
COMPRESSED = 1 << 10  # bytes: an answer no larger is not compressed
HEALTH = ("/v2/health/live", "/v2/health/ready")


def routes(service: Service) -> list[web.RouteDef]:
    """Give all routes."""
    api = Api(service)
    found = [
        web.get("/v2", api.server),
        web.get(HEALTH[0], api.live),
        web.get(HEALTH[1], api.ready),
        web.get("/v2/models", api.models),
        web.get("/v2/models/stats", api.stats),
        web.post("/v2/repository/index", api.index),
    ]
    for root in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        found += [
            web.get(root, api.model),
            web.get(f"{root}/ready", api.model_ready),
            web.get(f"{root}/config", api.config),
            web.get(f"{root}/stats", api.stats),
            web.post(f"{root}/infer", api.infer),
        ]
    return found


class Api:
    """The protocol's methods for one model."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._bundle = service.bundle
        self._name = service.bundle.manifest.name
        ref = service.predictor.ref
        formats = {"onnxruntime": "onnxruntime_onnx"}
        self._platform = formats.get(ref.backend, ref.backend)

    async def server(self, request: web.Request) -> web.Response:
        """Describe the server."""
        return _json(protocol.server_metadata())

    async def live(self, request: web.Request) -> web.Response:
        """Say that the process answers."""
        return _json({"live": True})

    async def ready(self, request: web.Request) -> web.Response:
        """Say whether the model would answer."""
        ready = self._service.ready()
        return _json({"ready": ready}, 200 if ready else 503)

    async def models(self, request: web.Request) -> web.Response:
        """List the models there are."""
        return _json({"models": [self._name]})

    async def index(self, request: web.Request) -> web.Response:
        """List the models with their states, as Triton's repository extension does."""
        state = "READY" if self._service.ready() else "UNAVAILABLE"
        return _json([{"name": self._name, "version": VERSION, "state": state, "reason": ""}])

    async def model(self, request: web.Request) -> web.Response:
        """Describe the model."""
        self._check(request)
        return _json(protocol.model_metadata(self._bundle, self._platform))

    async def model_ready(self, request: web.Request) -> web.Response:
        """Say whether the model would answer."""
        self._check(request)
        ready = self._service.ready()
        return _json({"name": self._name, "ready": ready}, 200 if ready else 503)

    async def config(self, request: web.Request) -> web.Response:
        """Give the model's configuration."""
        self._check(request)
        return _json(protocol.model_config(self._bundle, self._platform, self._service.max_batch))

    async def stats(self, request: web.Request) -> web.Response:
        """Give the sums since the start."""
        if "model" in request.match_info:
            self._check(request)
        sums = self._service.metrics.sums
        return _json({"model_stats": [{"name": self._name, "version": VERSION, **sums.as_triton()}]})

    async def infer(self, request: web.Request) -> web.Response:
        """Run the model on tensors."""
        self._check(request)
        make = functools.partial(self._rows, request.headers.get(HEADER_LENGTH))
        inference, outcome = await self._service.answer(request, make, INLINE)
        body, length = protocol.write_answer(self._bundle, inference, outcome.outputs)
        response = web.Response(body=body, content_type="application/octet-stream" if length else "application/json")
        if length:
            response.headers[HEADER_LENGTH] = str(length)
        if len(body) > COMPRESSED:
            _compress(request, response)
        return response

    def _rows(self, header: str | None, body: bytes) -> tuple[Array, Inference]:
        manifest = self._bundle.manifest
        inference = protocol.read_request(body, header, manifest.inputs, manifest.outputs)
        rows = inference.feeds[manifest.inputs[0].name]
        self._check_size(len(rows), self._service.limits.values)
        return rows, inference

    def _check_size(self, rows: int, values: int) -> None:
        """Refuse more rows than one answer may hold: those would keep others waiting, and as text take all memory."""
        each = sum(math.prod(size for size in spec.shape[1:] if size) for spec in self._bundle.manifest.outputs)
        if rows * each > max(values, each):
            most = max(1, values // each)
            raise RefusedError(413, f"one request may hold {most} rows here, and this has {rows}: send several")

    def _check(self, request: web.Request) -> None:
        """Refuse a model or version that is not here, with 404."""
        model, version = request.match_info["model"], request.match_info.get("version", VERSION)
        if model != self._name:
            raise RefusedError(404, f"no model is called {model[:80]!r}; there is {self._name!r}")
        if version != VERSION:
            raise RefusedError(404, f"the model has no version {version[:20]!r}; it has {VERSION!r}")


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=to_json(value, 0), status=status, content_type="application/json")


def _compress(request: web.Request, response: web.Response) -> None:
    accepted = [part.partition(";")[0].strip() for part in request.headers.get("Accept-Encoding", "").split(",")]
    for coding in (web.ContentCoding.gzip, web.ContentCoding.deflate):
        if coding.value in accepted:
            response.enable_compression(coding)
            return
