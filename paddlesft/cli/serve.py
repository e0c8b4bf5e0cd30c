"""paddlesft serve: answer requests over HTTP (OpenAI's API and /api/chat), and show a chat page beside them.

    paddlesft serve DIR                                           API on port 8010, page on 8011, this machine only
    paddlesft serve DIR --lora_path math=out/math --lora_path law=out/law     requests choose an adapter by its name
    PADDLESFT_API_KEY=secret paddlesft serve DIR --host 0.0.0.0               other machines, with a key

DIR holds a model, an adapter, or a static graph that paddlesft export wrote. SIGTERM or Ctrl-C lets running replies
end; a second one stops at once. docs/serve.md shows clients, limits, figures and how to run it as a service.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import ipaddress
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from paddlesft.cli.verb_arguments import is_option, read_arguments, show_help, wants_help
from paddlesft.errors import ConfigError, EnvironmentProblem, PaddleSFTError

if TYPE_CHECKING:
    from paddlesft.config.serve import ServeConfig
    from paddlesft.inference.engine import Engine
    from paddlesft.serving.front import Front
    from paddlesft.serving.http_server import HttpServer
    from paddlesft.serving.loading import LoadedForServing
    from paddlesft.serving.served_models import ServedModels
    from paddlesft.serving.settings import ServingSettings

_SAMPLING = ("decode_strategy", "top_k", "top_p", "temperature", "repetition_penalty")
_PACKAGES = {"Flask": "flask", "waitress": "waitress", "pydantic": "pydantic", "prometheus-client": "prometheus_client"}
_LONGEST_REPLY = 2048  # tokens, where neither the user nor the model says
_SECONDS_FOR_THE_END = 10.0  # that errors of cancelled replies may take to reach their readers


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it.

    Returns:
        0 after SIGTERM or Ctrl-C, 1 when the model stopped working; errors before that are raised.
    """
    from paddlesft.config.serve import ServeConfig

    if wants_help(argv):
        return show_help(__doc__, "serve", ServeConfig)
    if argv and not is_option(argv[0]) and not argv[0].endswith((".json", ".yaml", ".yml")):
        argv = ["--model_name_or_path", *argv]
    config = read_arguments("serve", ServeConfig, argv)
    check(config)
    return _serve(config)


def check(config: ServeConfig) -> None:
    """Refuse what cannot be served, before anything is loaded.

    Raises:
        ConfigError: naming the keys.
        EnvironmentProblem: naming the packages that are missing.
    """
    missing = [name for name, module in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise EnvironmentProblem(
            f"Serving needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed. Run: pip "
            "install 'paddlesft[serve]' (in a checkout: pip install -c constraints.txt -e '.[serve]')."
        )
    if not (config.model_name_or_path or config.lora_path or config.prefix_path):
        raise ConfigError("No model is named. Example: paddlesft serve models/merged")
    if config.page and config.flask_port and config.flask_port == config.port:
        raise ConfigError(
            f"flask_port and port are both {config.port}; API and chat page need a port each. Leave out the page with "
            "--page false, or choose another port."
        )
    longest, prompt = config.max_length, config.src_length
    if longest is not None and prompt is not None and prompt >= longest:
        raise ConfigError(
            f"max_length is {longest} and src_length {prompt}: no token is left for the reply. Raise max_length or "
            "lower src_length."
        )


def settings_of(config: ServeConfig) -> ServingSettings:
    """Return the limits and keys of a server whose model is not known yet."""
    from paddlesft.serving.api_keys import ENVIRONMENT, read_keys
    from paddlesft.serving.settings import ServingSettings

    return ServingSettings(
        default_max_tokens=config.default_max_tokens,
        defaults={name: value for name in _SAMPLING if (value := getattr(config, name)) is not None},
        max_body_bytes=config.max_body_bytes,
        max_choices=config.max_choices,
        request_timeout=config.request_timeout,
        api_keys=read_keys(config.api_key, os.environ.get(ENVIRONMENT)),
        log_prompts=config.log_prompts,
    )


def with_lengths(settings: ServingSettings, config: ServeConfig, context: int | None) -> ServingSettings:
    """Return settings with the lengths that the config and the model's context allow.

    Args:
        settings: without them.
        config: says less than the context, or nothing.
        context: tokens that the model holds; None: unknown.
    """
    allowed = [length for length in (config.max_length, context) if length is not None]
    longest = min(allowed, default=2 * _LONGEST_REPLY)
    prompt = min(config.src_length or longest - 1, longest - 1)
    if config.max_output_tokens is not None:
        reply = config.max_output_tokens
    elif config.max_length is not None and config.src_length is not None:
        reply = config.max_length - config.src_length
    else:
        reply = _LONGEST_REPLY
    reply = min(reply, longest - 1)
    default = settings.default_max_tokens
    return dataclasses.replace(
        settings,
        src_length=prompt,
        max_output_tokens=reply,
        default_max_tokens=None if default is None else min(default, reply),
    )


def warning_about(host: str, keys: tuple[str, ...]) -> str | None:
    """Return a warning for a server that strangers reach without a key, or None."""
    if keys or _is_loopback(host):
        return None
    return (
        f"WARNING: {host} lets every machine that reaches this one use the model, and no API key is asked for. "
        "Set PADDLESFT_API_KEY, or leave --host out."
    )


def page_host(host: str, keys: tuple[str, ...]) -> str:
    """Return the address of the chat page: that of the API, unless keys keep strangers from it."""
    return "127.0.0.1" if keys and not _is_loopback(host) else host


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _serve(config: ServeConfig) -> int:
    from paddlesft.serving.front import Front
    from paddlesft.serving.http_server import HttpServer, listen

    ranks, rank = _ranks(config)
    if rank:
        return _follow(config, ranks, rank)
    settings = settings_of(config)
    if config.page:
        listen(page_host(config.host, settings.api_keys), config.port).close()
    front = Front(settings)
    server = HttpServer(front, settings, config.host, config.flask_port, config.max_rows + config.max_queue)
    with _request_log():
        server.start()
        warning = warning_about(config.host, settings.api_keys)
        if warning is not None:
            print(warning, file=sys.stderr)
        print(f"Loading the model; {server.url}/ready says when it is there.", flush=True)
        try:
            return _answer(config, settings, front, server, ranks)
        finally:
            server.stop()


def _ranks(config: ServeConfig) -> tuple[int, int]:
    """Return how many ranks a launcher has started to share the layers, and which of them this is.

    Raises:
        ConfigError: a static graph is to be shared.
        UserError: the model's heads cannot be shared evenly.
    """
    ranks = int(os.environ.get("PADDLE_TRAINERS_NUM") or 1)
    if ranks < 2:
        return 1, 0
    from paddlesft.inference.device import use_device
    from paddlesft.models.graph_directory import holds_graph
    from paddlesft.models.load import load_config, paddle_directory
    from paddlesft.models.resolve import find_model
    from paddlesft.parallel.tensor_ranks import refuse_indivisible, start_ranks

    use_device(config.device)
    if config.model_name_or_path is None:
        raise ConfigError("Ranks share a model that is named: give --model_name_or_path, and no adapter.")
    directory = find_model(config.model_name_or_path)
    if holds_graph(directory):
        raise ConfigError(
            f"{directory} holds a static graph, which runs in one process. Start paddlesft serve without "
            "paddle.distributed.launch, or give the model that the graph was made from."
        )
    refuse_indivisible(load_config(paddle_directory(directory)), ranks, "serve the whole model")
    return start_ranks()


def _follow(config: ServeConfig, ranks: int, rank: int) -> int:
    """Compute a part of the model until the first rank, which has the server, says that this was all."""
    from paddlesft.inference.parallel_runner import follow
    from paddlesft.inference.step_model import EagerModel

    for number in (signal.SIGTERM, signal.SIGINT):  # the first rank ends in order, and then this one
        signal.signal(number, signal.SIG_IGN)
    loaded = _loaded(config, ranks, rank)
    follow(EagerModel(loaded.model, loaded.pad_token_id))
    return 0


def _answer(config: ServeConfig, settings: ServingSettings, front: Front, server: HttpServer, ranks: int) -> int:
    """Load the model, answer until a signal comes, and end in order."""
    import paddle  # noqa: F401  (its own handler of SIGTERM prints a crash)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from paddlesft.serving.app import create_app
    from paddlesft.serving.service import Service

    engine, models, said, end_other_ranks = _load(config, ranks)
    settings = with_lengths(settings, config, models.default.context_length)
    service = Service(engine, models, settings, front.metrics)
    front.metrics.follow(engine.stats)
    front.serve(create_app(service, settings), lambda: engine.failed)
    ended = threading.Event()
    with _page(config, settings, server) as page, _signals(ended, page, hasty=ranks == 1):
        _say_what_is_served(config, settings, models, said, server)
        while not ended.wait(timeout=0.5) and engine.failed is None:
            if page is not None and page.poll() is not None:
                print("Note: the chat page has ended; the API goes on.", file=sys.stderr)
                page = None
        front.drain()
        print(f"Stopping: replies may go on for {config.drain_seconds:g} s.", flush=True)
        complete = engine.drain(config.drain_seconds)
        end_other_ranks()
        front.wait_until_quiet(_SECONDS_FOR_THE_END)
    if engine.failed:
        raise PaddleSFTError(f"The model has stopped working: {engine.failed}")
    print("Stopped." if complete else "Stopped; replies that took longer ended with an error.", flush=True)
    return 0


def _loaded(config: ServeConfig, ranks: int, rank: int) -> LoadedForServing:
    from paddlesft.serving.loading import load_for_serving

    return load_for_serving(
        config.model_name_or_path,
        config.lora_path,
        config.prefix_path,
        config.dtype,
        config.chat_template,
        config.system_prompt,
        config.base_precision,
        config.mode,
        config.served_model_name,
        (ranks, rank),
    )


def _load(config: ServeConfig, ranks: int) -> tuple[Engine, ServedModels, list[str], Callable[[], None]]:
    """Load the model and its adapters.

    Returns:
        The engine, at work; the models by name; lines that say what was loaded; what ends the other ranks.
    """
    from paddlesft.cli.predict import about_quant_type
    from paddlesft.inference.device import use_device
    from paddlesft.inference.engine import Engine
    from paddlesft.inference.engine_statistics import EngineLimits
    from paddlesft.inference.fused_kernels import about_fused_kernels
    from paddlesft.inference.parallel_runner import Leader

    device = use_device(config.device)
    loaded = _loaded(config, ranks, 0)
    if config.inference_model:
        print(about_fused_kernels(device))
    if config.quant_type is not None:
        print(f"Note: {about_quant_type(config.quant_type, loaded.directory, loaded.base.formats)}")
    limits = EngineLimits(
        max_rows=config.max_rows,
        max_queue=config.max_queue,
        kv_tokens=config.kv_tokens,
        prefill_tokens=config.prefill_tokens,
        request_timeout=config.request_timeout,
        prefix_cache_tokens=config.prefix_cache_tokens if ranks == 1 else 0,  # each rank has other heads
    )
    leader = Leader(ranks) if ranks > 1 else None
    more = {} if leader is None else {"make_runner": leader.make_runner}
    engine = Engine(loaded.model, limits, loaded.pad_token_id, **more)
    if leader is not None:
        leader.watch(engine.give_up)
    engine.start()
    stored = f" ({loaded.base.said})" if loaded.base.said else ""
    lines = [f"Model:  {loaded.directory}{stored}, {loaded.model.config.dtype} on {device}"]
    lines += [f"        with adapter {name} from {directory}" for name, directory in loaded.adapters.items()]
    if leader is None:
        return engine, loaded.models, lines, lambda: None
    lines[0] += f", shared by {ranks} ranks"
    return engine, loaded.models, lines, leader.end


def _say_what_is_served(
    config: ServeConfig,
    settings: ServingSettings,
    models: ServedModels,
    said: list[str],
    server: HttpServer,
) -> None:
    key = ' -H "Authorization: Bearer $PADDLESFT_API_KEY"' if settings.api_keys else ""
    lines = [
        *said,
        f"Names:  {', '.join(models.names)}; {models.default.name} answers requests that name none",
        f"Limits: prompts of {settings.src_length} tokens, replies of {settings.max_output_tokens}; {config.max_rows} "
        f"at a time, {config.max_queue} may wait",
        f"API:    {server.url}/v1 (OpenAI's), {server.url}/api/chat (PaddleNLP's), {server.url}/metrics",
    ]
    body = f'{{"model": "{models.default.name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    lines.append(f"Try:    curl {server.url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'")
    print("\n".join(lines), flush=True)


@contextlib.contextmanager
def _request_log() -> Iterator[None]:
    """Show one line for each request on standard error."""
    log = logging.getLogger("paddlesft.requests")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


@contextlib.contextmanager
def _signals(ended: threading.Event, page: subprocess.Popen[bytes] | None, hasty: bool) -> Iterator[None]:
    """Set the event at the first SIGTERM or Ctrl-C, and leave at once at the second.

    Args:
        ended: the event.
        page: ends as well.
        hasty: False under a launcher, which sends every signal twice, and kills what stays.
    """

    def end(number: int, frame: Any) -> None:
        if ended.is_set() and not hasty:
            return
        if ended.is_set():
            if page is not None:
                page.kill()
            os._exit(1)
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _page(
    config: ServeConfig, settings: ServingSettings, server: HttpServer
) -> Iterator[subprocess.Popen[bytes] | None]:
    """Run the chat page in a process of its own, as long as the API; it says itself where it listens."""
    from paddlesft.serving.api_keys import ENVIRONMENT

    if not config.page:
        yield None
        return
    if importlib.util.find_spec("gradio") is None:
        print("Note: the chat page needs gradio (pip install gradio); the API goes on without it.", file=sys.stderr)
        yield None
        return
    host = page_host(config.host, settings.api_keys)
    command = [sys.executable, "-m", "paddlesft", "chat-page", "--url", server.url, "--port", str(config.port)]
    command += ["--host", host, "--title", config.title, "--end_with_input", "true"]
    environment = dict(os.environ)
    if settings.api_keys:
        environment[ENVIRONMENT] = settings.api_keys[0]
    if host != config.host:
        print(
            f"Note: the chat page uses the API's key for whoever reaches it, so it listens on {host} only. "
            f"paddlesft chat-page --host {config.host} would open it.",
            file=sys.stderr,
        )
    # a group of its own: Ctrl-C in the terminal is for the API, which ends the page after the last reply
    page = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield page
    finally:
        page.terminate()
        try:
            page.wait(timeout=5)
        except subprocess.TimeoutExpired:
            page.kill()
            page.wait()
