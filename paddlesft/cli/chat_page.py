"""paddlesft chat-page: a page for talking to the models of a server, one of them or two side by side.

    paddlesft chat-page                                    for the server at http://127.0.0.1:8010
    paddlesft chat-page --url http://host:8010 --port 9000 --title "Our models"

paddlesft serve starts it by itself. The server's key, if it asks for one, comes from the environment variable
PADDLESFT_API_KEY; whoever reaches the page can use the models with it. Ctrl-C ends the page.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

from paddlesft.cli.verb_arguments import read_arguments, show_help, wants_help
from paddlesft.errors import ConfigError, EnvironmentProblem, UserError

if TYPE_CHECKING:
    from paddlesft.config.chat_page import ChatPageConfig


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it.

    Returns:
        0; errors are raised.
    """
    from paddlesft.config.chat_page import ChatPageConfig

    if wants_help(argv):
        return show_help(__doc__, "chat-page", ChatPageConfig)
    return _serve(read_arguments("chat-page", ChatPageConfig, argv))


def _serve(config: ChatPageConfig) -> int:
    if not config.url.startswith(("http://", "https://")):
        raise ConfigError(f"url: found {config.url!r}; allowed is an address such as http://127.0.0.1:8010.")
    if importlib.util.find_spec("gradio") is None:
        raise EnvironmentProblem("The chat page needs the package gradio. Run: pip install 'gradio>=6,<7'")
    port = config.port or _free_port(config.host)
    _refuse_taken(config.host, port)
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}

    from paddlesft.serving.chat_page.client import ApiClient
    from paddlesft.serving.chat_page.page import CSS, build_page, theme

    key = os.environ.get("PADDLESFT_API_KEY", "").split(",")[0].strip()
    page = build_page(ApiClient(config.url, key or None), config.title)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if config.end_with_input:
        threading.Thread(target=_wait_for_end_of_input, args=[ended], daemon=True).start()
    page.launch(
        server_name=config.host, server_port=port, prevent_thread_lock=True, quiet=True, show_error=False,
        share=False, ssr_mode=False, footer_links=[], theme=theme(), css=CSS, max_file_size="4mb",
    )  # fmt: skip
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
    print(f"Page:   http://{shown}:{port}", flush=True)
    if key and not _is_loopback(config.host):
        print("WARNING: the page uses the server's key for everybody who reaches it.", file=sys.stderr)
    ended.wait()
    page.close(verbose=False)
    return 0


def _wait_for_end_of_input(ended: threading.Event) -> None:
    while sys.stdin.buffer.read(1024):
        pass
    ended.set()


def _free_port(host: str) -> int:
    with socket.socket() as one:
        one.bind((host, 0))
        return one.getsockname()[1]


def _refuse_taken(host: str, port: int) -> None:
    try:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
    except OSError as error:
        raise UserError(
            f"Cannot listen on {host} port {port}: {error.strerror}. Stop what listens there, or choose another --port."
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
