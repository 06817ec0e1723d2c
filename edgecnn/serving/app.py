"""The application: one bundle's model behind HTTP routes."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Awaitable, Callable

from aiohttp import web

from edgecnn.backends.base import SessionOptions
from edgecnn.bundle import Bundle
from edgecnn.errors import EdgecnnError, ImageError, UsageError
from edgecnn.predict import Predictor
from edgecnn.serving import classify, v2
from edgecnn.serving.access import Access
from edgecnn.serving.door import Door
from edgecnn.serving.limits import Limits, RefusedError
from edgecnn.serving.service import Service
from edgecnn.spec import BackendRef, to_json

SERVICE = web.AppKey("service", Service)
DOOR = web.AppKey("door", Door)  # set by `run`; without it, as in tests of the routes alone, nobody counts connections
_ACCESS = web.AppKey("access", Access)
_PUBLIC = web.AppKey("public", set[web.AbstractResource])

# Statuses after which the client may still be sending its body, or is not to be trusted with the connection.
_CLOSING = (408, 413)
Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(
    bundle: Bundle,
    ref: BackendRef | None = None,
    options: SessionOptions | None = None,
    limits: Limits | None = None,
    token: str | None = None,
    access: Access | None = None,
) -> web.Application:
    """Load the bundle's model and make the application that serves it.

    With a token, every route asks for it (`Authorization: Bearer TOKEN`) but the health routes and those of the page
    whose path does not begin with `/bundle`. `access` says more than `token` alone.

    Raises:
        EdgecnnError: the model cannot be loaded, as for `Predictor`, or served, as for `Service`.
    """
    service = Service(bundle, Predictor(bundle, ref, options), limits or Limits())
    app = web.Application(middlewares=[_guard])
    app[SERVICE] = service
    app[_ACCESS] = access or Access(token)
    app.add_routes([*v2.routes(service), *classify.routes(service), web.get("/metrics", _metrics)])
    public = {resource for resource in app.router.resources() if resource.canonical in v2.HEALTH}
    app[_PUBLIC] = public | _add_page(app, bundle, service.predictor.ref)
    app.on_startup.append(service.start)
    app.on_cleanup.append(service.stop)
    return app


def _add_page(app: web.Application, bundle: Bundle, ref: BackendRef) -> set[web.AbstractResource]:
    """Add the page's routes and return those of them that need no token."""
    from edgecnn.serving import page

    own = set(app.router.resources())
    app.add_routes(page.routes(bundle, ref))
    return {found for found in app.router.resources() if found not in own and not found.canonical.startswith("/bundle")}


async def _metrics(request: web.Request) -> web.Response:
    text = request.app[SERVICE].metrics.page()
    return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


@web.middleware
async def _guard(request: web.Request, handler: Answering) -> web.StreamResponse:
    """Let a request in, count it and its time, and turn whatever is raised into an answer."""
    app, start = request.app, time.perf_counter()
    metrics, door, transport = app[SERVICE].metrics, app.get(DOOR), request.transport
    resource = request.match_info.route.resource
    if door:
        door.begin(transport)
    try:
        response = await _answer(request, handler, resource in app[_PUBLIC])
    finally:
        if door:
            door.end(transport)
    metrics.count(resource.canonical if resource else "none", response.status)()
    metrics.stage("total")(time.perf_counter() - start)
    return response


async def _answer(request: web.Request, handler: Answering, public: bool) -> web.StreamResponse:
    service = request.app[SERVICE]
    try:
        if service.stopping:
            raise RefusedError(503, "the server is stopping")
        request.app[_ACCESS].check(request, public)
        return await handler(request)
    except RefusedError as error:
        service.metrics.reject(str(error.status))()
        response = _refusal(error.status, str(error))
        if service.stopping:
            response.force_close()
        return response
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _refusal(error.status, _elsewhere(request, error), error.headers.get("Allow"))
    except (ImageError, UsageError) as error:
        return _refusal(400, str(error))
    except web.RequestPayloadError as error:
        return _refusal(400, f"the body is damaged ({error})")
    except EdgecnnError as error:
        service.metrics.sums.failed += 1
        return _refusal(500, str(error))
    except ConnectionError:  # the client has gone: nobody to answer
        raise
    except Exception:
        service.metrics.sums.failed += 1
        traceback.print_exc(file=sys.stderr)
        return _refusal(500, "the server has a fault; its log says which")


def _elsewhere(request: web.Request, error: web.HTTPException) -> str:
    """Say of a path or a method that is not here what is."""
    if error.status == 405:
        return f"{request.method[:20]} is not taken here; {error.headers.get('Allow', 'nothing')} is"
    if error.status == 404:
        return "nothing is at this path; / is the page, and /predict, /v2 and /metrics are there"
    return error.reason


def _refusal(status: int, reason: str, allow: str | None = None) -> web.Response:
    """Make the answer `{"error": REASON}`."""
    response = web.Response(body=to_json({"error": reason}, 0), status=status, content_type="application/json")
    if status == 503:
        response.headers["Retry-After"] = "1"
    elif status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if allow:
        response.headers["Allow"] = allow
    if status in _CLOSING:
        response.force_close()
    return response
