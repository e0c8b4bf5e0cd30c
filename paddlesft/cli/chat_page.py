"""paddlesft chat-page: a chat page in the browser for any server of OpenAI's API.

    paddlesft chat-page                                           for a server on port 8010, page on 8011
    paddlesft chat-page --url http://127.0.0.1:8000 --port 7860
    PADDLESFT_API_KEY=secret paddlesft chat-page                  for a server that asks for a key

paddlesft serve starts one by itself. docs/chat-page.md shows what the page can do.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from paddlesft.cli.verb_arguments import read_arguments, show_help, wants_help
from paddlesft.errors import EnvironmentProblem, UserError


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it.

    Returns:
        0 after SIGTERM or Ctrl-C; errors are raised.
    """
    from paddlesft.config.chat_page import ChatPageConfig

    if wants_help(argv):
        return show_help(__doc__, "chat-page", ChatPageConfig)
    config = read_arguments("chat-page", ChatPageConfig, argv)
    try:
        from paddlesft.serving.chat_page.server import create_page, run_page
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"The chat page needs the package {error.name}, which is not installed. Install gradio: "
            "pip install 'paddlesft[serve]'"
        ) from error
    from paddlesft.serving.chat_page.backend import Backend
    from paddlesft.serving.chat_page.preferences import PreferenceFile
    from paddlesft.serving.listening import address_of, is_loopback, listen

    key = os.environ.get("PADDLESFT_API_KEY", "").split(",")[0].strip()
    backend = Backend(config.url, key or None)
    if config.preference_file is not None and Path(config.preference_file).is_dir():
        raise UserError(f"preference_file: {config.preference_file} is a directory; name a file, such as pairs.jsonl.")
    file = None if config.preference_file is None else PreferenceFile(config.preference_file)
    listening = listen(config.host, config.port)
    app = create_page(backend, config.title, None if config.language == "auto" else config.language, file)
    if config.end_with_input:
        threading.Thread(target=_end_with_input, daemon=True).start()
    if key and not is_loopback(config.host):
        print("WARNING: the page uses the server's key for everybody who reaches it.", file=sys.stderr)
    listening.listen()  # whoever comes at once waits, instead of finding nobody
    print(f"Page:   {address_of(config.host, listening.getsockname()[1])}", flush=True)
    run_page(app, listening)
    return 0


def _end_with_input() -> None:
    while sys.stdin.buffer.read(1024):
        pass
    signal.raise_signal(signal.SIGTERM)
