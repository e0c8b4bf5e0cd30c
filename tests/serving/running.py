"""A server as users have it, on a free port of this machine: waitress, the application, the engine, a real model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paddlesft.inference.engine import Engine, EngineLimits
from paddlesft.serving.app import create_app
from paddlesft.serving.front import Front
from paddlesft.serving.http_server import HttpServer
from paddlesft.serving.loading import load_for_serving
from paddlesft.serving.service import Service
from paddlesft.serving.settings import ServingSettings


class RunningServer:
    """What a test may reach of a running server.

    Attributes:
        url: without a path.
        engine: behind it.
        service: in front of that.
        front: in front of that.
    """

    def __init__(self, server: HttpServer, front: Front, service: Service) -> None:
        self.url, self.front, self.service, self.engine = server.url, front, service, service.engine

    def wait_until_idle(self, seconds: float = 20.0) -> None:
        """Wait until the engine has nothing left to do; fail when it goes on."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stats = self.engine.stats()
            if not stats.active and not stats.waiting:
                return
            time.sleep(0.01)
        raise AssertionError(f"the engine is still at work: {self.engine.stats()}")


@contextmanager
def running(
    model: str | Path,
    limits: EngineLimits | None = None,
    settings: ServingSettings | None = None,
    name: str = "tiny",
    **loading: Any,
) -> Iterator[RunningServer]:
    """Serve a model for a while.

    Args:
        model: its directory.
        limits: of the engine.
        settings: of the service.
        name: under which the base is served.
        loading: further arguments of ``load_for_serving``.
    """
    limits, settings = limits or EngineLimits(), settings or ServingSettings()
    loaded = load_for_serving(str(model), served_model_name=name, **loading)
    engine = Engine(loaded.model, limits, loaded.pad_token_id).start()
    front = Front(settings)
    service = Service(engine, loaded.models, settings, front.metrics)
    front.metrics.follow(engine.stats)
    front.serve(create_app(service, settings), lambda: engine.failed)
    server = HttpServer(front, settings, "127.0.0.1", 0, limits.max_rows + limits.max_queue).start()
    try:
        yield RunningServer(server, front, service)
    finally:
        engine.close()
        server.stop()
