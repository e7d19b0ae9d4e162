"""The page: an image and expressions in, coloured masks, polygons and COCO's file out.

It is plain HTML and JavaScript, and asks `/v1/segment` as any other client. Everything it loads
comes from this machine: a header forbids the browser anything else.
"""

from __future__ import annotations

import asyncio
import functools
import io
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from PIL import Image
from pydantic import BaseModel

from ris.data.samples import scene_images
from ris.serving.limits import LimitError

STATIC = Path(__file__).parent / "static"
"""What the browser gets."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy."""


class Example(BaseModel):
    """A picture to try, and what it may be asked."""

    image: str
    """Where it is, from the page."""

    expressions: list[str]
    """What may be asked."""


@functools.cache
def _examples() -> list[tuple[bytes, list[str]]]:
    """Three drawn scenes with expressions, such as the demo is evaluated on, as PNG files."""
    found = []
    for image in scene_images("heldout", 12, size=512):
        buffer = io.BytesIO()
        Image.fromarray(image.rgb).save(buffer, "PNG")
        texts = list(dict.fromkeys(truth.expression for truth in image.truths))
        found.append((buffer.getvalue(), texts[:3]))
    return found


def add_page(app: FastAPI) -> None:
    """Adds the page and its files."""
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.include_router(_page_router())


def _page_router() -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> FileResponse:
        headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
        return FileResponse(STATIC / "page.html", headers=headers)

    @router.get("/examples")
    async def examples() -> list[Example]:
        found = await asyncio.to_thread(_examples)
        return [
            Example(image=f"examples/{number}.png", expressions=texts)
            for number, (_, texts) in enumerate(found)
        ]

    @router.get("/examples/{number}.png")
    async def example(number: int) -> Response:
        found = await asyncio.to_thread(_examples)
        if not 0 <= number < len(found):
            raise LimitError("there is no such example", 404)
        return Response(found[number][0], media_type="image/png")

    return router
