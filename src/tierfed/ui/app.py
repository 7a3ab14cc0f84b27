"""The web application: a page, its data as JSON, and events when files change. GET only; it reads run folders."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tierfed.errors import InputError
from tierfed.report.html import part
from tierfed.ui.folders import Listing, entries, entry, version
from tierfed.ui.nodes import health
from tierfed.ui.pages import Pages

LOOK_SECONDS = 0.5
"""How often an open page looks for changes."""

_BEAT_SECONDS = 15.0
_HEADERS = {
    # plotly styles its charts by attributes
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_FILES = {
    "page.js": ("text/javascript", lambda: part("look.js") + "\n" + _own("page.js")),
    "page.css": ("text/css", lambda: part("page.css") + "\n" + _own("page.css")),
    "plotly.js": ("text/javascript", get_plotlyjs),
}


def make_app(
    root: Path, hosts: list[str], stopping: Callable[[], bool] = lambda: False, nodes: Sequence[Path] = ()
) -> Starlette:
    """The application over the runs below a folder.

    :param nodes: further folders in which states of nodes may be read
    :param stopping: whether the server ends, and with it the streams of events, which have no end of their own
    :param hosts: names by which a browser may call it; any other Host is refused, so that a page of somebody else whose
        name is made to lead here cannot read anything
    """
    listing, pages, root = Listing(root), Pages(root, nodes), root.resolve()

    async def shell(request: Request) -> Response:
        return Response(_own("page.html"), media_type="text/html")

    async def runs(request: Request) -> Response:
        return _json(await run_in_threadpool(listing.rows))

    async def run(request: Request) -> Response:
        try:
            found = entry(root, request.path_params["name"])
        except InputError as err:
            return _json({"problem": str(err)}, 404)
        return _json(await run_in_threadpool(pages.page, found))

    async def events(request: Request) -> Response:
        name = request.path_params.get("name")
        if name is None:
            return _stream(
                request, stopping, lambda: tuple((n, version(e)) for n, e in entries(root).items()), 4 * LOOK_SECONDS
            )
        try:
            found = entry(root, name)
        except InputError as err:
            return _json({"problem": str(err)}, 404)

        def state() -> Any:
            there = [] if found.grid else health(found.path, pages.allowed)
            return version(found), [(n["node"], n["state"], n["round"], n["children"]) for n in there]

        return _stream(request, stopping, state)

    async def file(request: Request) -> Response:
        kind, _ = _FILES[request.path_params["name"]]
        packed = await run_in_threadpool(_packed, request.path_params["name"])
        return Response(packed, media_type=kind, headers={"Content-Encoding": "gzip"})

    routes = [
        Route("/", shell),
        Route("/run/{name:path}", shell),
        Route("/api/runs", runs),
        Route("/api/run/{name:path}", run),
        Route("/events", events),
        Route("/events/{name:path}", events),
        *(Route(f"/{name}", _named(file, name)) for name in _FILES),
    ]
    guards = [Middleware(_Headers), Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)]
    return Starlette(routes=routes, middleware=guards)


class _Headers:
    """Every answer carries what a browser needs to keep others out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self.app(scope, receive, guarded)


def _stream(
    request: Request, stopping: Callable[[], bool], state: Callable[[], Any], seconds: float = LOOK_SECONDS
) -> Response:
    """Server-sent events: one whenever the state is another one than before, and one at the beginning."""

    async def changes() -> AsyncIterator[str]:
        last, quiet, number = None, 0.0, 0
        while not (stopping() or await request.is_disconnected()):
            now = await run_in_threadpool(state)
            if now != last:
                last, quiet, number = now, 0.0, number + 1
                yield f"event: change\ndata: {number}\n\n"
            elif quiet >= _BEAT_SECONDS:
                quiet = 0.0
                yield ": still here\n\n"
            await asyncio.sleep(seconds)
            quiet += seconds

    return StreamingResponse(changes(), media_type="text/event-stream")


def _named(answer: Callable[[Request], Any], name: str) -> Callable[[Request], Any]:
    async def named(request: Request) -> Response:
        request.path_params["name"] = name
        found: Response = await answer(request)
        return found

    return named


def _json(value: Any, status: int = 200) -> Response:
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), default=_plain)
    return Response(text, status, media_type="application/json")


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else list(value)


@cache
def _packed(name: str) -> bytes:
    return gzip.compress(_FILES[name][1]().encode(), 6)


def _own(name: str) -> str:
    return resources.files("tierfed.ui").joinpath(name).read_text(encoding="utf-8")
