"""The page's own process: where it listens, and what browsers may do with it."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

# before gradio is imported: it would report its use to its makers
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI

from paddlesft.serving.chat_page.backend import Backend
from paddlesft.serving.chat_page.page import Page
from paddlesft.serving.chat_page.preferences import PreferenceFile
from paddlesft.serving.chat_page.style import HEAD, STYLE

warnings.filterwarnings("ignore", message=".* is deprecated", module="gradio")  # for its makers

FONTS = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]  # of the reader's machine
CODE_FONTS = ["ui-monospace", "Consolas", "DejaVu Sans Mono", "monospace"]

# what a reply holds must not make browsers ask other machines for anything
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; connect-src 'self' blob: data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


class WithPolicy:
    """Adds headers to every answer: a browser fetches nothing from elsewhere and guesses no types.

    Args:
        app: answers.
    """

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request (ASGI)."""

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = {b"content-security-policy": POLICY, b"x-content-type-options": "nosniff",
                         b"referrer-policy": "no-referrer"}  # fmt: skip
                message["headers"] = [*message.get("headers", []), *((k, v.encode()) for k, v in added.items())]
            await send(message)

        await self._app(scope, receive, send_with_policy)


def create_page(
    backend: Backend, title: str, language: str | None = None, preference_file: PreferenceFile | None = None
) -> Asgi:
    """Return the page as an ASGI application.

    Args:
        backend: the server it speaks to.
        title: heading.
        language: ``en``, ``zh``, or None: as each browser asks.
        preference_file: collects pairs; or None.
    """
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        Page(backend, title, language, preference_file).blocks(),
        path="/",
        footer_links=[],
        show_error=False,
        max_file_size="4mb",
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Soft(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=CODE_FONTS),
        css=STYLE,
        head=HEAD,
    )
    return WithPolicy(app)


def run_page(app: Asgi, listening: socket.socket) -> None:
    """Answer browsers until SIGTERM or Ctrl-C.

    Args:
        app: the page.
        listening: a socket that is bound; it is closed at the end.
    """
    # streams of open browsers never end by themselves
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, access_log=False, lifespan="on")
    uvicorn.Server(config).run(sockets=[listening])
