"""The model hubs: what they hold of a model, where it is kept on this machine, which environment variables count.

Hugging Face is asked through its own library. ModelScope, AI Studio and PaddleNLP's BOS storage are asked over HTTP:
their libraries are not needed. Default addresses are those of the libraries.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from paddlesft.errors import EnvironmentProblem, ModelDirectoryError
from paddlesft.models.cache import cache_home
from paddlesft.models.download import Hub, HubError, RemoteFile, download_snapshot, get
from paddlesft.models.weights import weight_files

# What a model directory needs; the same weights in other formats (.bin, .gguf, onnx/) are left where they are.
WANTED = ("*.json", "*.safetensors", "model_state*.pdparams", "*.model", "*.txt", "*.tiktoken", "*.jinja")
# BOS cannot be listed: these names are tried.
BOS_WEIGHTS = ("model.safetensors.index.json", "model.safetensors", "model_state.pdparams")
BOS_NAMES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "sentencepiece.bpe.model", "qwen.tiktoken",
    "ice_text.model", "cog-pretrain.model", "chat_template.json",
)  # fmt: skip

HUGGING_FACE = Hub("Hugging Face", "HF_TOKEN", "HF_ENDPOINT")
MODELSCOPE = Hub("ModelScope", "MODELSCOPE_API_TOKEN", "MODELSCOPE_ENDPOINT")
AI_STUDIO = Hub("AI Studio", "AISTUDIO_ACCESS_TOKEN", "AISTUDIO_ENDPOINT")
BOS = Hub("BOS", None, "PPNLP_ENDPOINT")


@dataclass(frozen=True)
class Request:
    """A model asked of a hub: its name, and the branch, tag or commit (None: the hub's default)."""

    model: str
    revision: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def offline() -> bool:
    """Tell whether the environment forbids the network (``HF_HUB_OFFLINE`` or ``PADDLESFT_OFFLINE``)."""
    return is_set("HF_HUB_OFFLINE") or is_set("PADDLESFT_OFFLINE")


def is_set(variable: str) -> bool:
    """Tell whether an environment variable is switched on; "0", "false", "no", "off" and nothing are off."""
    return os.environ.get(variable, "").strip().lower() not in ("", "0", "false", "no", "off")


def first_set(*variables: str) -> str | None:
    """Return the value of the first environment variable that is set."""
    return next((os.environ[name] for name in variables if os.environ.get(name)), None)


def is_complete(directory: Path) -> bool:
    """Tell whether a directory holds a config and all weights that it should."""
    if not (directory / "config.json").is_file():
        return False
    try:
        return bool(weight_files(directory)) or any(directory.glob("model_state*.pdparams"))
    except ModelDirectoryError:  # the index names files that are not there
        return False


def wanted(path: str) -> bool:
    """Tell whether a file of a hub belongs into a model directory (top level only)."""
    return "/" not in path and any(fnmatch.fnmatch(path, pattern) for pattern in WANTED)


def from_hugging_face(request: Request) -> Path:
    """Get a model from Hugging Face, through its library and into its cache (``HF_HOME``, ``HF_HUB_CACHE``)."""
    import huggingface_hub
    from huggingface_hub import errors

    name = request.model
    cache = first_set("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    if cache is None and os.environ.get("HF_HOME"):
        cache = str(Path(os.environ["HF_HOME"]).expanduser() / "hub")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    address = endpoint or huggingface_hub.constants.ENDPOINT
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=request.revision,
                cache_dir=cache,
                endpoint=endpoint,
                allow_patterns=list(WANTED),
                ignore_patterns=["*/*"],
                local_files_only=offline(),
                max_workers=4,
            )
        )
    except errors.GatedRepoError as error:
        raise HubError(
            f"{name} is gated on Hugging Face: accept its terms on its page, then set HF_TOKEN to your token."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{name} on Hugging Face has no revision {request.revision!r}.") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"Hugging Face ({address}) has no model {name!r}, or it is private and HF_TOKEN may not read it. "
            "Check the spelling; other hubs: modelscope:NAME, aistudio:NAME, bos:NAME, or PADDLESFT_HUB."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if offline():
            raise HubError(_not_cached(HUGGING_FACE, name)) from error
        raise HubError(
            f"Hugging Face cannot be reached at {address}, and {name} is not in the cache. "
            "Check the network or HF_ENDPOINT, or download it elsewhere and give its directory."
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise HubError(
                f"Hugging Face ({address}) refuses access to {name}. Set HF_TOKEN to a token that may read it."
            ) from error
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(
            f"{name} could not be downloaded from Hugging Face ({address}): {text}. "
            "What has come is kept; the same command goes on from there."
        ) from error


def from_modelscope(request: Request) -> Path:
    """Get a model from ModelScope (https://www.modelscope.cn/docs, Hub API)."""
    endpoint = first_set("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN") or _modelscope_default()
    endpoint = (endpoint if "://" in endpoint else f"https://{endpoint}").rstrip("/")
    token = first_set("MODELSCOPE_API_TOKEN", "MODELSCOPE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    base = f"{endpoint}/api/v1/models/{quote(request.model)}/repo"
    revision = request.revision or "master"

    def listing() -> list[RemoteFile]:
        url = f"{base}/files?Revision={quote(revision, safe='')}&Recursive=true"
        response = get(MODELSCOPE, request.model, url, headers)
        content = response.json() if response.status_code == 200 else {}
        if content.get("Code") != 200:
            raise _no_model(MODELSCOPE, request, endpoint)
        return [
            RemoteFile(
                path=entry["Path"],
                url=f"{base}?Revision={quote(revision, safe='')}&FilePath={quote(entry['Path'], safe='')}",
                size=entry.get("Size"),
                sha256=entry.get("Sha256"),
            )
            for entry in content["Data"]["Files"]
            if entry.get("Type") != "tree"
        ]

    root = os.environ.get("MODELSCOPE_CACHE")
    return _kept(MODELSCOPE, request, Path(root) / "models" if root else None, listing, headers)


def from_aistudio(request: Request) -> Path:
    """Get a model from AI Studio, whose git server has Gitea's interface."""
    endpoint = first_set("AISTUDIO_ENDPOINT", "STUDIO_GIT_HOST") or _paddlenlp_default("aistudio_hub_download")
    endpoint = endpoint.rstrip("/")
    token = first_set("AISTUDIO_ACCESS_TOKEN", "AISTUDIO_TOKEN")
    headers = {"Authorization": f"token {token}"} if token else {}
    base = f"{endpoint}/api/v1/repos/{quote(request.model)}"
    suffix = f"?ref={quote(request.revision, safe='')}" if request.revision else ""

    def listing() -> list[RemoteFile]:
        response = get(AI_STUDIO, request.model, f"{base}/contents{suffix}", headers)
        if response.status_code == 404:
            raise _no_model(AI_STUDIO, request, endpoint)
        # the size of a file in large-file storage is that of its pointer: sizes are taken from the download
        return [
            RemoteFile(entry["path"], f"{base}/media/{quote(entry['path'])}{suffix}")
            for entry in response.json()
            if entry.get("type") == "file"
        ]

    root = first_set("AISTUDIO_HUB_CACHE")
    return _kept(AI_STUDIO, request, Path(root) if root else None, listing, headers)


def from_bos(request: Request) -> Path:
    """Get a model from the storage of PaddleNLP's built-in and community models."""
    endpoint = (os.environ.get("PPNLP_ENDPOINT") or _paddlenlp_default("bos_download")).rstrip("/")
    base = f"{endpoint}/models/community/{quote(request.model)}"

    def exists(name: str) -> bool:
        return get(BOS, request.model, f"{base}/{name}", {}, method="HEAD").status_code == 200

    def listing() -> list[RemoteFile]:
        if request.revision:
            raise HubError(f"BOS keeps one version of a model; leave out the revision {request.revision!r}.")
        if not exists("config.json"):
            raise _no_model(BOS, request, endpoint)
        weights = next((name for name in BOS_WEIGHTS if exists(name)), None)
        names = ["config.json", *([weights] if weights else [])]
        if weights and weights.endswith(".index.json"):
            index = get(BOS, request.model, f"{base}/{weights}", {}).json()
            names += sorted(set(index["weight_map"].values()))
        names += [name for name in BOS_NAMES if exists(name)]
        return [RemoteFile(name, f"{base}/{name}") for name in names]

    root = os.environ.get("PPNLP_HOME")
    return _kept(BOS, request, Path(root) / "models" if root else None, listing, {})


HUBS: dict[str, Callable[[Request], Path]] = {
    "huggingface": from_hugging_face,
    "modelscope": from_modelscope,
    "aistudio": from_aistudio,
    "bos": from_bos,
}
ALIASES = {"hf": "huggingface", "ms": "modelscope"}


def _kept(
    hub: Hub, request: Request, shared: Path | None, listing: Callable[[], list[RemoteFile]], headers: Mapping[str, str]
) -> Path:
    """Return a model's directory, downloading it when it is not there.

    ``shared`` is the cache of the hub's own library, where the environment names one: complete models in it are used
    and new ones are put there; what it holds only in part is left alone.
    """
    name = f"{request.model}@{request.revision}" if request.revision else request.model
    own = cache_home() / "hub" / hub.name.lower().replace(" ", "")
    places = [folder.expanduser() / name for folder in (shared, own) if folder]
    for place in places:
        if is_complete(place):
            return place
    target = next((place for place in places if not place.exists()), places[-1])
    if offline():
        raise HubError(_not_cached(hub, request.model))
    files = [file for file in listing() if wanted(file.path)]
    if not files:
        raise HubError(f"{request.model} on {hub.name} holds no model files.")
    return download_snapshot(hub, request.model, files, target, headers)


def _no_model(hub: Hub, request: Request, endpoint: str) -> HubError:
    revision = f" with revision {request.revision!r}" if request.revision else ""
    token = f", or it is private and {hub.token_variable} may not read it" if hub.token_variable else ""
    return HubError(
        f"{hub.name} ({endpoint}) has no model {request.model!r}{revision}{token}. Check the spelling; "
        f"other hubs: {', '.join(f'{name}:NAME' for name in HUBS)}, or PADDLESFT_HUB."
    )


def _not_cached(hub: Hub, model: str) -> str:
    return (
        f"{model} from {hub.name} is not on this machine, and the network is switched off (HF_HUB_OFFLINE or "
        "PADDLESFT_OFFLINE). Unset it once to download, or give a directory."
    )


def _modelscope_default() -> str:
    try:
        from modelscope.hub.constants import DEFAULT_MODELSCOPE_DATA_ENDPOINT
    except ImportError as error:
        raise EnvironmentProblem(
            "The address of ModelScope is not known here. Set MODELSCOPE_ENDPOINT to it, or run: pip install modelscope"
        ) from error
    return DEFAULT_MODELSCOPE_DATA_ENDPOINT


def _paddlenlp_default(module: str) -> str:
    import importlib

    return importlib.import_module(f"paddlenlp.utils.download.{module}").ENDPOINT
