"""The application: one bundle's model behind HTTP routes."""

from __future__ import annotations

from importlib.util import find_spec

from aiohttp import web

from edgecnn.backends.base import SessionOptions
from edgecnn.bundle import Bundle
from edgecnn.predict import Predictor
from edgecnn.serving.limits import Limits
from edgecnn.spec import BackendRef

PREDICTOR = web.AppKey("predictor", Predictor)


def make_app(
    bundle: Bundle,
    ref: BackendRef | None = None,
    options: SessionOptions | None = None,
    limits: Limits | None = None,
    token: str | None = None,
) -> web.Application:
    """Load the bundle's model and make the application that serves it.

    With `token`, every route asks for it (`Authorization: Bearer TOKEN`) but the health routes and those of the page
    whose path does not begin with `/bundle`.

    Raises:
        EdgecnnError: the model cannot be loaded, as for `Predictor`.
    """
    app = web.Application()
    app[PREDICTOR] = Predictor(bundle, ref, options)
    if find_spec("edgecnn.serving.page"):
        from edgecnn.serving import page

        app.add_routes(page.routes(bundle))
    return app
