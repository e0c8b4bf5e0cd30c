"""From what a server is told to the models it answers with: one base, and adapters over it by name.

Everything that can be wrong with names, directories and templates is found before the weights are loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlesft.errors import ModelDirectoryError, PaddleSFTError
from paddlesft.inference.adapter_base import BaseWeights, Precision, base_of, settle_base
from paddlesft.inference.loading import (
    NO_MODEL,
    Mode,
    adapter_kind,
    check_adapter,
    load_renderer,
    load_weights,
    settle_graph,
    settle_mode,
    stop_tokens,
    tokenizer_directory,
)
from paddlesft.inference.several_adapters import AdaptedModel, AdapterDirectory, refuse_shared_base
from paddlesft.models.directory import TOKENIZER_FILES
from paddlesft.models.embedded import PREFIX as EMBEDDED
from paddlesft.models.families import family_of
from paddlesft.models.graph_directory import holds_graph
from paddlesft.models.load import load_config, paddle_directory
from paddlesft.models.provenance import read_provenance
from paddlesft.models.resolve import find_model
from paddlesft.serving.served_models import ServedModel, ServedModels
from paddlesft.tuning.row_lora import read_row_config

NAME = re.compile(r"\w[\w.:@/+-]{0,127}")
ALLOWED = "letters, digits and . _ : @ / + -, at most 128, with a letter or digit first"


@dataclass(frozen=True)
class LoadedForServing:
    """What a server needs of its models.

    Attributes:
        model: for the engine.
        models: by name.
        pad_token_id: fills shorter rows.
        directory: of the base.
        base: which of its weights are used.
        adapters: their directories by name.
    """

    model: Any
    models: ServedModels
    pad_token_id: int
    directory: Path
    base: BaseWeights
    adapters: dict[str, Path]


@dataclass(frozen=True)
class _Named:
    name: str
    path: Path
    kind: str

    @property
    def key(self) -> str:
        return f"{self.kind}_path"


def load_for_serving(
    model: str | Path | None,
    lora_paths: Sequence[str | Path] = (),
    prefix_paths: Sequence[str | Path] = (),
    dtype: str | None = None,
    chat_template: str | None = None,
    system_prompt: str | None = None,
    base_precision: Precision | None = None,
    mode: Mode | None = None,
    served_model_name: str | None = None,
    tensor_parallel: tuple[int, int] = (1, 0),
) -> LoadedForServing:
    """Load a base once, and the adapters over it; or a static graph.

    Every model has the tokenizer, template, system prompt and stop tokens that ``load_for_inference`` would give it
    alone. Adapters come first in the list, and the first of them answers requests that name no model; then the base.

    Args:
        model: name or directory of the base or of a static graph; an adapter's directory counts as the first adapter.
            None: the base that the adapters name.
        lora_paths: LoRA adapters, each ``name=directory`` or a directory, whose last part is then the name.
        prefix_paths: prefix adapters, given like those.
        dtype: see ``paddlesft.models.load_model``.
        chat_template: for all models, see ``load_for_inference``.
        system_prompt: for all models, see ``load_for_inference``.
        base_precision: see ``adapter_base.settle_base``.
        mode: see ``load_for_inference``.
        served_model_name: of the base; None: the last part of its name or directory.
        tensor_parallel: see ``paddlesft.models.load_model``; without adapters.

    Raises:
        ModelDirectoryError: nothing was named; names are odd or not different; directories are missing or hold
            something else; adapters do not belong to the base, or to the same weights of it; or see
            ``load_for_inference``. What is wrong with several adapters is said at once.
        UserError: see ``several_adapters.refuse_shared_base``.
    """
    adapters = [_named(entry, "lora") for entry in lora_paths] + [_named(entry, "prefix") for entry in prefix_paths]
    if model is not None and (kind := adapter_kind(Path(model))) is not None:
        model, adapters = None, [_named(model, kind), *adapters]
    if model is None and not adapters:
        raise ModelDirectoryError(NO_MODEL)
    base_name = served_model_name or (None if model is None else _name_of(model))
    problems = [problem for one in adapters for problem in _problem_of(check_adapter, one.path, one.kind)]
    _raise_all([*problems, *_name_problems(base_name, adapters)])
    given = base_of(adapters[0].path) if model is None else find_model(model)
    settle_mode(given, mode)
    if base_name is None:
        base_name = _name_of((read_provenance(adapters[0].path).get("base") or {}).get("name") or given)
        _raise_all(_name_problems(base_name, adapters))
    if holds_graph(given):
        base = settle_graph(given, adapters[0].path if adapters else None, dtype, base_precision)
    else:
        base = _settle_bases(adapters, paddle_directory(given), base_precision)
    directory = base.directory
    config = load_config(directory)
    if adapters:
        if tensor_parallel[0] > 1:
            raise ModelDirectoryError(
                f"{adapters[0].key}: adapters are not served by a model whose layers are divided among "
                f"{tensor_parallel[0]} ranks. Merge the adapter (paddlesft merge-lora) and serve the merged model, or "
                "start one process."
            )
        refuse_shared_base(config)
        lora = [one.path for one in adapters if one.kind == "lora"]
        _raise_all([problem for path in lora for problem in _problem_of(read_row_config, path)])
    served: list[ServedModel] = []
    tokenizers: dict[str, Any] = {}
    for one in [*adapters, None]:
        path = None if one is None else one.path
        key = _tokenizer_key(tokenizer_directory(directory, path))
        renderer = load_renderer(config, directory, path, chat_template, system_prompt, tokenizers.get(key))
        tokenizers[key] = renderer.tokenizer
        served.append(
            ServedModel(
                name=base_name if one is None else one.name,
                adapter=None if one is None else one.name,
                renderer=renderer,
                tokenizer=renderer.tokenizer,
                stop_token_ids=stop_tokens(renderer, directory),
                context_length=family_of(config).context_length(config),
                adapter_kind=None if one is None else one.kind,
            )
        )
    pad_token_id = served[-1].tokenizer.pad_token_id or 0
    loaded = load_weights(directory, base, dtype, pad_token_id, tensor_parallel)
    if adapters:
        loaded = AdaptedModel(
            loaded, {one.name: AdapterDirectory(one.path, one.kind) for one in adapters}, pad_token_id
        )
    paths = {one.name: one.path for one in adapters}
    return LoadedForServing(loaded, ServedModels(served), pad_token_id, directory, base, paths)


def _named(entry: str | Path, kind: str) -> _Named:
    """Read ``name=directory``, or a directory, which may have an = in its own name.

    Raises:
        ModelDirectoryError: it names no directory.
    """
    name, equals, directory = str(entry).partition("=")
    if not (directory if equals else name).strip():
        raise ModelDirectoryError(f"{kind}_path: {str(entry)!r} names no directory. Give NAME=DIR, or DIR.")
    if not equals or Path(entry).is_dir():
        return _Named(_name_of(entry), Path(entry).expanduser(), kind)
    return _Named(name.strip(), Path(directory.strip()).expanduser(), kind)


def _name_of(model: str | Path) -> str:
    """Return the last part of a directory, of a hub's name or of an embedded model's."""
    text = str(model)
    if text.startswith(EMBEDDED):
        return text.removeprefix(EMBEDDED)
    return Path(os.path.abspath(Path(text).expanduser())).name  # a link has a name of its own


def _name_problems(base: str | None, adapters: Sequence[_Named]) -> list[str]:
    """Say which names cannot be used; ``base`` is None as long as the base's is not known."""
    problems = []
    if base is not None and not NAME.fullmatch(base):
        problems.append(f"{base!r} cannot be the model's name; allowed: {ALLOWED}. Give --served_model_name NAME")
    for one in adapters:
        if not NAME.fullmatch(one.name):
            advice = f"Give --{one.key} NAME={one.path}"
            problems.append(f"{one.key}: {one.name!r} cannot be a name; allowed: {ALLOWED}. {advice}")
    uses: dict[str, list[str]] = {} if base is None else {base: ["the base"]}
    for one in adapters:
        uses.setdefault(one.name, []).append(f"{one.key} {one.path}")
    for name, users in uses.items():
        if len(users) > 1:
            advice = "Give other names: --lora_path NAME=DIR, --served_model_name NAME"
            problems.append(f"the name {name!r} is given to {' and to '.join(users)}. {advice}")
    return problems


def _problem_of(check: Any, *arguments: Any) -> list[str]:
    try:
        check(*arguments)
    except PaddleSFTError as error:
        return [str(error)]
    return []


def _raise_all(problems: Sequence[str]) -> None:
    """Raise what was found: one problem as it is, several in a list."""
    problems = list(dict.fromkeys(problem.removesuffix(".") for problem in problems))
    if len(problems) == 1:
        raise ModelDirectoryError(f"{problems[0]}.")
    if problems:
        lines = "".join(f"\n  - {problem}." for problem in problems)
        raise ModelDirectoryError(f"{len(problems)} things are wrong with the models to serve:{lines}")


def _settle_bases(adapters: Sequence[_Named], directory: Path, precision: Precision | None) -> BaseWeights:
    """Find the weights that all adapters, or none, run on.

    Raises:
        ModelDirectoryError: there are no weights that serve them all.
    """
    if not adapters:
        return settle_base(None, directory, precision)
    settled: dict[str, BaseWeights] = {}  # by what adapters say of their base: its weights are hashed once for all
    found: dict[str, BaseWeights] = {}
    problems = []
    for one in adapters:
        facts = read_provenance(one.path)
        key = json.dumps([facts.get("base"), facts.get("base_quantization")], sort_keys=True, default=str)
        try:
            if key not in settled:
                settled[key] = settle_base(one.path, directory, precision)
            found[one.name] = settled[key]
        except ModelDirectoryError as error:
            problems.append(str(error))
    _raise_all(problems)
    wanted = Counter((str(base.directory), base.how) for base in found.values())
    if len(wanted) > 1:
        lines = "".join(
            f"\n  - {name}: {base.directory}, {base.said or 'weights as they are stored'}"
            for name, base in found.items()
        )
        raise ModelDirectoryError(
            f"The adapters need different weights, and a server holds one base in memory:{lines}\n"
            "Serve them apart, or add --base_precision full, with which all of them compute over the weights before "
            "they were rounded."
        )
    return found[adapters[0].name]


def _tokenizer_key(directory: Path) -> str:
    """Return what is equal for directories with the same tokenizer files, so that it is in memory once."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (directory / name).is_file():
            content = (directory / name).read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
