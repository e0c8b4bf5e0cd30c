"""Model names -> local directories in Paddle's layout."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.directory import read_config
from paddlesft.models.download import HubError
from paddlesft.models.embedded import NAMES, PREFIX, embedded_model
from paddlesft.models.hubs import ALIASES, HUBS, Request, is_set
from paddlesft.models.weights import read_weights

HUB_VARIABLE = "PADDLESFT_HUB"
DEFAULT_HUB = "huggingface"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


def resolve_model(name_or_path: str | Path, hub: str | None = None, revision: str | None = None) -> Path:
    """Return the local directory of a model, in Paddle's layout.

    A Hugging Face directory, local or downloaded, is converted into the user's cache first; it stays as it is.

    Args:
        name_or_path: a directory; ``embedded:smollm2``; a hub name ``org/name``, with ``@revision`` if wanted, with
            ``hf:``, ``modelscope:``, ``aistudio:`` or ``bos:`` in front to choose the hub.
        hub: huggingface, modelscope, aistudio or bos; a hub in front of the name comes first. None asks the
            environment: ``PADDLESFT_HUB``, then ``from_modelscope``, else Hugging Face.
        revision: branch, tag or commit; None is the hub's default.

    Raises:
        ModelDirectoryError: no such directory or model, or it is incomplete.
        EnvironmentProblem: a package that is needed for it is missing.
    """
    directory = find_model(name_or_path, hub, revision)
    from paddlesft.models.load import paddle_directory

    return paddle_directory(directory)


def find_model(name_or_path: str | Path, hub: str | None = None, revision: str | None = None) -> Path:
    """Return the local directory of a model as it was published (see ``resolve_model``); does not load paddle."""
    name = str(name_or_path)
    if name.startswith(PREFIX):
        return embedded_model(name.removeprefix(PREFIX))
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        advice = f" Run: paddlesft import-gguf {name} DIR" if path.suffix == ".gguf" else ""
        raise ModelDirectoryError(f"{name} is a file; a model is a directory.{advice}")
    source, model = split_hub(name, hub)
    looks_local = isinstance(name_or_path, Path) or name.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(model)
    if looks_local or ("/" not in model and source != "bos"):
        raise ModelDirectoryError(_no_directory(name, path))
    model, _, tag = model.partition("@")
    found = HUBS[source](Request(model, revision or tag or None))
    _check_complete(found, model, source)
    return found


def split_hub(name: str, hub: str | None = None) -> tuple[str, str]:
    """Find out which hub a name belongs to.

    Returns:
        The hub (a key of ``HUBS``) and the name without its prefix.

    Raises:
        ModelDirectoryError: the argument or the environment names an unknown hub.
    """
    prefix, colon, rest = name.partition(":")
    if colon and ALIASES.get(prefix, prefix) in HUBS:
        return ALIASES.get(prefix, prefix), rest
    chosen, where = hub, "hub"
    if chosen is None and os.environ.get(HUB_VARIABLE):
        chosen, where = os.environ[HUB_VARIABLE].strip().lower(), HUB_VARIABLE
    if chosen is None:
        return ("modelscope" if is_set("from_modelscope") else DEFAULT_HUB), name
    chosen = ALIASES.get(chosen, chosen)
    if chosen not in HUBS:
        raise ModelDirectoryError(f"{where} is {chosen!r}; allowed: {', '.join([*HUBS, *ALIASES])}.")
    return chosen, name


def _check_complete(directory: Path, model: str, hub: str) -> None:
    """Refuse a snapshot without weights: an interrupted download looks complete to the hub's library when offline."""
    read_config(directory)
    weights, _ = read_weights(directory)
    if weights or any(directory.glob("model_state*.pdparams")):
        return
    there = ", ".join(sorted(path.name for path in directory.iterdir())[:8])
    raise HubError(
        f"{model} from {hub} has no weights in a format that is read here (safetensors, pdparams). "
        f"Found: {there}. If its download was interrupted, run it again with the network on; "
        "if it holds only pytorch_model.bin, convert that to safetensors first."
    )


def _no_directory(name: str, path: Path) -> str:
    parent = path.parent
    names = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f" Did you mean {parent / near[0]}?" if near else ""
    embedded = ", ".join(PREFIX + known for known in NAMES)
    return (
        f"There is no model directory {name!r} (looked in {Path.cwd()}).{hint} "
        f"A model is a directory, a hub name such as org/name, or {embedded}."
    )
