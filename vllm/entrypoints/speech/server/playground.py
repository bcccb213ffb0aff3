# SPDX-License-Identifier: Apache-2.0
"""The page at /, to try a server's model with: static files that load nothing from elsewhere.

The page itself needs no key; what it asks the server for does, and it asks its reader for one.
"""

from __future__ import annotations

import secrets
from argparse import Namespace
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

import vllm.entrypoints.speech

FILES = Path(vllm.entrypoints.speech.__file__).parent / "playground"
INDEX, ASSETS = "index.html", "/playground"
NONCE = "{nonce}"
"""Where a page has the nonce of its answer, by which wavesurfer marks its style sheet."""

_DIRECTIVES = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_HEADERS = {
    # Asked for each time: the files of another version must not meet.
    "cache-control": "no-cache",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def security_headers(nonce: str | None = None) -> dict[str, str]:
    """Headers of the page and its files.

    Args:
        nonce: of the style sheets that scripts may add to the page.
    """
    directives = dict(_DIRECTIVES)
    if nonce is not None:
        directives["style-src"] += f" 'nonce-{nonce}'"
    policy = "; ".join(f"{name} {sources}" for name, sources in directives.items())
    return {"content-security-policy": policy, **_HEADERS}


class _Assets(StaticFiles):
    """The page's files, but for the page."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if path == INDEX:
            raise HTTPException(404)
        response = await super().get_response(path, scope)
        response.headers.update(security_headers())
        return response


def serve_playground(app: FastAPI, args: Namespace | None = None) -> None:
    """Give an application the page, unless --no-playground says otherwise.

    Args:
        args: of the command line.
    """
    if not getattr(args, "playground", True):
        return
    page = (FILES / INDEX).read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        return HTMLResponse(page.replace(NONCE, nonce), headers=security_headers(nonce))

    app.mount(ASSETS, _Assets(directory=FILES), name="playground")
