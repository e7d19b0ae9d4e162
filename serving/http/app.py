"""The application: routes over a service, and what every request goes through."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST

from ris import __version__
from ris.engines.errors import RisError
from ris.serving.http.labelling.label_studio import label_studio_router
from ris.serving.http.labelling.x_anylabeling import x_anylabeling_router
from ris.serving.http.middleware import Visits, error_body, error_headers, visit_of
from ris.serving.http.page import add_page
from ris.serving.http.segment import segment_router
from ris.serving.http.service import Service
from ris.serving.limits import LimitError, status_of

_log = logging.getLogger("ris.http")
_OFFLINE = Path(fastapi_offline.__file__).parent / "static"  # Swagger UI and ReDoc as files
_LOOKED_FOR = 1.0  # seconds


def create_app(service: Service, supervisor: int | None = None) -> FastAPI:
    """The application over a service, which it starts and closes.

    supervisor: the process that starts workers anew; SIGHUP to it reloads all of them. None: this
    process stands alone.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        undo = _listen_to_signals(service)  # SIGHUP ends a process that does not listen to it
        watch = None
        try:
            await service.start()
            if supervisor:
                service.when_broken = _end
            watch = asyncio.ensure_future(_watch(service, supervisor))
            yield
        finally:
            undo()
            await service.close()
            if watch:
                watch.cancel()

    app = FastAPI(
        title="ris-runtime",
        version=__version__,
        description="Referring image segmentation: image + “left man” → mask.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Visits, service=service)
    app.add_exception_handler(RisError, _refused)
    app.add_exception_handler(Exception, _failed)
    _add_documents(app)
    _add_state(app, service, supervisor)
    app.include_router(segment_router(service))
    add_page(app)
    app.include_router(label_studio_router(service))
    app.include_router(x_anylabeling_router(service))
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RisError)
    visit, status = visit_of(request.scope), status_of(error)
    visit.fields["error"] = str(error)
    if status >= 500 and not isinstance(error, LimitError):
        fields = {"request_id": visit.request_id}
        _log.error("the engine failed", exc_info=error, extra={"fields": fields})
    body = error_body(status, str(error), visit.request_id)
    headers = {name.decode(): value.decode() for name, value in error_headers(error)}
    return Response(body, status, headers, "application/json")


async def _failed(request: Request, error: Exception) -> Response:
    """What is no RisError costs its own request; the middleware writes the traceback."""
    said = "an internal error; the server's log has it under this request_id"
    body = error_body(500, said, visit_of(request.scope).request_id)
    return Response(body, 500, media_type="application/json")


def _add_documents(app: FastAPI) -> None:
    """OpenAPI's pages, from files of this machine."""
    app.mount("/docs-files", StaticFiles(directory=_OFFLINE), name="docs-files")
    shared: dict[str, Any] = {"openapi_url": "openapi.json", "title": app.title}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            swagger_js_url="docs-files/swagger-ui-bundle.js",
            swagger_css_url="docs-files/swagger-ui.css",
            swagger_favicon_url="docs-files/favicon.png",
            **shared,
        )

    @app.get("/redoc", include_in_schema=False)
    async def redoc() -> HTMLResponse:
        return get_redoc_html(
            redoc_js_url="docs-files/redoc.standalone.js",
            redoc_favicon_url="docs-files/favicon.png",
            with_google_fonts=False,
            **shared,
        )


def _add_state(app: FastAPI, service: Service, supervisor: int | None) -> None:
    """What tells about the server, and changes it."""

    @app.get("/health", tags=["state"], summary="Whether the process works")
    async def health() -> Response:
        """503 where the engine fails at everything, or hangs: start the process anew."""
        live = service.live
        return JSONResponse({"live": live}, 200 if live else 503)

    @app.get("/ready", tags=["state"], summary="Whether a request is welcome")
    async def ready() -> Response:
        """503 while the server shuts down, and where it is not live."""
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/metrics", tags=["state"], summary="Figures for Prometheus")
    async def metrics() -> Response:
        page = await asyncio.to_thread(service.metrics.page)
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/model", tags=["state"], summary="What answers here")
    async def model() -> dict[str, Any]:
        return describe(service)

    @app.post("/v1/reload", tags=["state"], summary="Opens the bundle anew")
    async def reload() -> Response:
        """No request is lost. Needs a token; without one send SIGHUP to the server."""
        if service.settings.token is None:
            raise LimitError("a server without a token reloads by SIGHUP alone", 403)
        if supervisor:
            os.kill(supervisor, signal.SIGHUP)
            return JSONResponse({"reload": "asked of every worker"}, 202)
        await service.reload()
        return JSONResponse({"reload": "done"})


def describe(service: Service) -> dict[str, Any]:
    """The model, what runs its graphs, and what a request may be."""
    model, limits = service.answerer.model, service.settings.limits
    manifest = model.bundle.manifest
    return {
        "trained": model.trained,
        "family": manifest.family,
        "categories": model.categories,
        "forms": [*manifest.host.text.forms],
        "form": service.answerer.form,
        "no_target": manifest.no_target,
        "graphs": {
            stage: {
                "engine": f"{info.engine} {info.version}",
                "device": info.device,
                "precision": manifest.graphs[stage].precision,
                "computes_in": info.precision,
            }
            for stage, info in model.sessions.items()
        },
        "limits": {
            "image_bytes": limits.image_bytes,
            "pixels": limits.pixels,
            "expressions": limits.expressions,
            "characters": limits.characters,
            "seconds": limits.seconds,
        },
        "version": __version__,
    }


def _listen_to_signals(service: Service) -> Any:
    """SIGHUP reloads; SIGTERM makes the server unready, and then does what it did before.

    Returns what undoes it. Elsewhere than in a main thread there are no signals.
    """
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        try:
            await service.reload()
            _log.info("reloaded")
        except Exception as error:
            _log.error("the bundle was not reloaded", extra={"fields": {"error": str(error)}})

    def hang_up() -> None:
        task = asyncio.ensure_future(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    try:
        loop.add_signal_handler(signal.SIGHUP, hang_up)
    except (RuntimeError, ValueError):
        return lambda: None

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, frame: Any) -> None:
        service.draining = True
        then = before[signal.Signals(number)]
        if callable(then):
            then(number, frame)

    for number in before:
        signal.signal(number, stop)

    def undo() -> None:
        loop.remove_signal_handler(signal.SIGHUP)
        for number, handler in before.items():
            signal.signal(number, handler)

    return undo


async def _watch(service: Service, supervisor: int | None) -> None:
    """Ends a process that nobody would end.

    A worker whose supervisor was killed would go on. A thread that hangs in the engine would be
    waited for, by a server that was asked to end, too; the only process goes on until it is asked.
    """
    while supervisor in (None, os.getppid()):
        if service.hangs and (supervisor or service.draining):
            _log.error("the engine hangs; this process ends")
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(_LOOKED_FOR)
    _log.error("the supervisor is gone; this worker ends")
    _end()


def _end() -> None:
    """Ends this worker; its supervisor, where there is one, starts another."""
    os.kill(os.getpid(), signal.SIGTERM)
