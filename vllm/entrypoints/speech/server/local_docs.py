# SPDX-License-Identifier: Apache-2.0
"""The page at /docs, with nothing from elsewhere: FastAPI's own loads its scripts from the net."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from vllm.entrypoints.serve.instrumentator import offline_docs

PAGES = ("/docs", "/redoc", "/docs/oauth2-redirect")
ASSETS = Path(offline_docs.__file__).parent / "static"
"""Swagger UI, which upstream ships for --enable-offline-docs."""
_NO_ICON = "data:,"


def serve_docs(app: FastAPI) -> None:
    """Replace the pages of an application that has some; --disable-fastapi-docs leaves none."""
    url = app.openapi_url
    if url is None:
        return
    app.router.routes[:] = [
        route for route in app.router.routes if getattr(route, "path", None) not in PAGES
    ]
    if not any(getattr(route, "path", None) == "/static" for route in app.router.routes):
        app.mount("/static", StaticFiles(directory=ASSETS), name="static")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        root = (app.root_path or "").rstrip("/")
        return get_swagger_ui_html(
            openapi_url=f"{root}{url}",
            title=app.title,
            swagger_js_url=f"{root}/static/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/static/swagger-ui.css",
            swagger_favicon_url=_NO_ICON,
        )
