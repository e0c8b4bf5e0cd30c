"""Model directories -> config and model, and back; ``tokenizers.py`` loads their tokenizers."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import paddle
from paddlenlp.transformers.model_utils import no_init_weights

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.directory import TOKENIZER_FILES, copy_tokenizer, read_config
from paddlesft.models.divided import empty_model, fill_parts, refuse_homeless, refuse_other_sizes
from paddlesft.models.families import family_of
from paddlesft.models.family import Family
from paddlesft.models.graph_directory import GRAPH_FILE, holds_graph
from paddlesft.models.provenance import fingerprint, read_provenance, write_provenance
from paddlesft.models.quantized.directory import KEY as QUANTIZATION
from paddlesft.models.quantized.directory import (
    fill_quantized,
    put_empty_layers,
    quantized_layers,
    read_records,
    save_quantized,
)
from paddlesft.models.quantized.formats import WeightFormat
from paddlesft.models.quantized.on_load import fill_quantizing
from paddlesft.models.quantized.origin import refuse_quantized, refuse_rounding_again
from paddlesft.models.stored import stored_weights
from paddlesft.models.tokenizers import load_tokenizer
from paddlesft.models.weights import PADDLE_LAYOUT, TORCH_LAYOUT, read_weights

logger = logging.getLogger("paddlesft")

# Entries of config.json that say how a run was distributed, and what they are for a whole model in a single process.
ONE_PROCESS = {
    "tensor_parallel_degree": 1, "tensor_parallel_rank": 0, "tensor_parallel_output": True,
    "pipeline_parallel_degree": 1, "virtual_pp_degree": 1, "sep_parallel_degree": 1, "context_parallel_degree": 1,
    "sharding_parallel_degree": 1, "data_parallel_degree": 1, "sequence_parallel": False,
    "fuse_sequence_parallel_allreduce": False,
}  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16")
# how paddlenlp names a weight that it leaves out: its name, its shape, the model's shape
OTHER_SIZE = re.compile(
    r"Skip loading for (\S+)\. \S+ receives a shape (\[.*?\]), but the expected shape is (\[.*?\])\."
)


def load_config(directory: str | Path) -> Any:
    """Load the PaddleNLP config of a model directory.

    Raises:
        ModelDirectoryError: it is missing, names a model of no known family, or has a size that is no number.
    """
    directory = Path(directory)
    import paddlenlp.transformers as zoo

    content, where = read_config(directory), str(directory / "config.json")
    family = family_of(content, where=where)
    _refuse_odd_sizes(content, family, where)
    config_class = getattr(zoo, family.config_class)
    with quiet_paddlenlp():
        if read_records(content, where):  # of a method that paddlenlp does not know
            config = config_class.from_dict({key: value for key, value in content.items() if key != QUANTIZATION})
        else:
            config = config_class.from_pretrained(str(directory))
    for key, value in ONE_PROCESS.items():
        if hasattr(config, key):
            setattr(config, key, value)
    _add_token_ids(config, family, directory)
    family.fix_config(config)
    return config


def _refuse_odd_sizes(content: Mapping[str, Any], family: Family, where: str) -> None:
    keys = ("hidden_size", "vocab_size", family.num_layers_key, family.num_heads_key, family.num_kv_heads_key)
    found = {key: value for key in keys if (value := content.get(key)) is not None}
    wrong = [f"{key} is {value!r}" for key, value in found.items() if type(value) is not int or value < 1]
    if wrong:
        raise ModelDirectoryError(
            f"{where}: {', '.join(wrong)}; allowed: whole numbers above 0. Get the model's config.json again."
        )


def _add_token_ids(config: Any, family: Family, directory: Path) -> None:
    """Take special tokens' ids that the decoder looks for from the tokenizer, where config.json lacks them."""
    lacking = [(key, token) for key, token in family.token_ids if getattr(config, key, None) is None]
    if lacking and any((directory / name).is_file() for name in TOKENIZER_FILES):
        tokenizer = load_tokenizer(directory)
        for key, token in lacking:
            setattr(config, key, tokenizer.convert_tokens_to_ids(token))


def usable_dtype(wanted: str) -> str:
    """Return the type that weights can have on the current device: CPU kernels exist for float32 only."""
    return "float32" if paddle.get_device().startswith("cpu") else wanted


def chosen_dtype(directory: Path, wanted: str) -> str:
    """Return the type that a model's weights get, with a notice where it is not the wanted one.

    Raises:
        ModelDirectoryError: the wanted type is unknown.
    """
    if wanted not in DTYPES:
        raise ModelDirectoryError(f"dtype {wanted!r} is not one of {', '.join(DTYPES)}.")
    used = usable_dtype(wanted)
    if used != wanted:
        logger.warning("%s: %s has no CPU kernels; the model is loaded as %s.", directory, wanted, used)
    return used


def load_model(
    directory: str | Path,
    dtype: str | None = None,
    for_training: bool = False,
    tensor_parallel: tuple[int, int] = (1, 0),
    sequence_parallel: bool = False,
    quantize: WeightFormat | None = None,
) -> Any:
    """Load the causal language model of a model directory.

    Args:
        directory: Paddle layout (safetensors or .pdparams), or a Hugging Face directory (converted into the user's
            cache first; the directory itself is left as it is).
        dtype: float32, bfloat16 or float16; the directory's own when None. On CPU the model is float32 whatever is
            asked, with a notice.
        for_training: leave the model in training mode instead of evaluation mode.
        tensor_parallel: how many ranks share each layer, and which of them this is; Fleet has been started if several.
        sequence_parallel: those ranks also share what lies between the layers' matrices, by tokens.
        quantize: format that the Linear layers of the decoder get while they are loaded, so that one float weight at a
            time is in memory; None leaves them as they are. ``tensor_parallel`` has to be (1, 0) then.

    Returns:
        A PaddleNLP model; its ``config.dtype`` is the type that it has in memory.

    Raises:
        ModelDirectoryError: weights are missing or damaged, do not fit the config, or the dtype is unknown; or a
            quantized directory is to be quantized again.
    """
    directory = paddle_directory(directory)
    config = load_config(directory)
    used = chosen_dtype(directory, dtype or config.dtype or "float32")
    import paddlenlp.transformers as zoo

    family = family_of(config)
    model_class = getattr(zoo, family.causal_lm)
    records = read_records(read_config(directory), str(directory / "config.json"))
    if tensor_parallel[0] > 1:
        refuse_quantized(directory, "to divide layers among ranks (tensor_parallel_degree)")
    if quantize is not None:
        refuse_rounding_again(directory, quantize)
    with quiet_paddlenlp(logging.ERROR):
        if records:
            model = _without_memory(model_class, config, directory, used)
            put_empty_layers(model, records, str(directory / "config.json"))
            stored = read_weights(directory)[0]
            fill_quantized(model, stored, directory)
        elif quantize is not None:
            model = _without_memory(model_class, config, directory, used)
            stored = fill_quantizing(model, directory, quantize)
        elif tensor_parallel[0] > 1 or read_weights(directory)[0]:
            whole = config.to_dict()
            config.tensor_parallel_degree, config.tensor_parallel_rank = tensor_parallel
            config.sequence_parallel = sequence_parallel
            model = _without_memory(model_class, config, directory, used)
            stored = fill_parts(without_second_names(model), directory, whole, family, *tensor_parallel)
            if tensor_parallel[0] > 1:
                refuse_homeless(directory, model.state_dict(), stored, whole)
        else:  # .pdparams, whose names paddlenlp knows in older forms, too
            with no_init_weights(_enable=True), _refusing_other_sizes(directory):
                model = model_class.from_pretrained(
                    str(directory),
                    config=config,
                    dtype=used,
                    convert_from_torch=False,  # the environment variable from_modelscope would switch it on
                )
            stored = read_weights(directory)[0]  # none in a directory with .pdparams: paddlenlp has compared the names
    family.fix_model(model, lambda name: name in stored_weights(directory))  # first: it may tie a head not stored
    refuse_missing(directory, without_second_names(model), stored)
    model.train() if for_training else model.eval()
    return model


def _without_memory(model_class: Any, config: Any, directory: Path, dtype: str) -> Any:
    """Build a model whose weights get memory when they are filled: each is there once, and none is drawn at random."""
    with paddle.LazyGuard():
        model = empty_model(model_class, config, directory, dtype)
    if config.tie_word_embeddings:
        with contextlib.suppress(AttributeError):  # a head without a weight of its own is tied already
            model.tie_weights()
    return model


@contextlib.contextmanager
def _refusing_other_sizes(directory: Path) -> Any:
    """Say in one line what paddlenlp says of weights that do not fit the config."""
    try:
        yield
    except RuntimeError as error:
        found = OTHER_SIZE.findall(str(error))
        refuse_other_sizes(directory, found)
        raise


def refuse_missing(directory: Path, wanted: Collection[str], stored: Collection[str]) -> None:
    """Refuse weights that do not fill a model: paddlenlp only warns, and trains on random numbers.

    Args:
        directory: the model's.
        wanted: names of the weights that its config asks for.
        stored: names of the weights that it holds; nothing happens where they are unknown.

    Raises:
        ModelDirectoryError: some are missing.
    """
    missing = sorted(set(wanted) - set(stored)) if stored else []
    if missing:
        raise ModelDirectoryError(
            f"{directory} lacks {len(missing)} of {len(wanted)} weights that its config.json asks for: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Is it a complete model?"
        )


def paddle_directory(directory: str | Path) -> Path:
    """Return a directory with weights in Paddle's layout: the given one, or its conversion in the user's cache.

    Raises:
        ModelDirectoryError: it holds a static graph or no weights, or the files do not say how theirs are laid out.
    """
    directory = Path(directory)
    refuse_graph(directory)
    config = read_config(directory)
    tensors, layout = read_weights(directory)
    if not tensors:
        if any(directory.glob("model_state*.pdparams")):
            return directory
        if any(directory.glob("pytorch_model*.bin")):
            raise ModelDirectoryError(
                f"{directory} holds only pytorch_model.bin, a pickle of torch that is not read here. "
                "Convert it once where torch is installed: AutoModelForCausalLM.from_pretrained(DIR)"
                ".save_pretrained(NEW_DIR, safe_serialization=True)."
            )
        raise ModelDirectoryError(
            f"{directory} holds no weights: expected model.safetensors, model.safetensors.index.json or "
            "model_state.pdparams."
        )
    family = family_of(config, where=str(directory / "config.json"))
    if layout not in (PADDLE_LAYOUT, TORCH_LAYOUT):  # no metadata, or another library's: the names tell
        if any(name.startswith(f"{family.base_prefix}.") for name in tensors):
            raise ModelDirectoryError(
                f"{directory}: the names of the weights are PaddleNLP's, but the files' metadata have the format "
                f"{layout!r} instead of {PADDLE_LAYOUT!r}, so that PaddleNLP does not read them. Save the model again "
                "with its save_pretrained(DIR, safe_serialization=True)."
            )
        layout = TORCH_LAYOUT
    if layout != TORCH_LAYOUT:
        return directory
    from paddlesft.models.hugging_face import converted

    return converted(directory)


def refuse_graph(directory: Path) -> None:
    """Refuse a static graph where a model is needed, and one that is not complete.

    Raises:
        ModelDirectoryError: naming the model that it was made from, where that is known.
    """
    if holds_graph(directory):
        source = (read_provenance(directory).get("base") or {}).get("path")
        raise ModelDirectoryError(
            f"{directory} holds a static graph, which predict, chat and benchmark run. Here a model is needed: give "
            f"{source + ', from which it was exported' if source else 'the directory from which it was exported'}."
        )
    if read_provenance(directory).get("kind") == "graph":
        raise ModelDirectoryError(
            f"{directory} holds a static graph, but its {GRAPH_FILE} is missing. Copy the directory again, whole."
        )
    # Paddle 3 names its programs *.json, as other files are; their weights have a name of their own
    programs = sorted(path.name for end in ("*.pdmodel", "*.pdiparams") for path in directory.glob(end))
    if programs and not any(directory.glob("*.safetensors")) and not any(directory.glob("model_state*.pdparams")):
        raise ModelDirectoryError(
            f"{directory} holds a static graph that PaddleNLP exported ({programs[0]}) and no model. Such graphs are "
            "not run here. Give the model's own directory, or export that: paddlesft export --model_name_or_path DIR "
            "--output_path GRAPH_DIR."
        )


def save_model_directory(
    model: Any, tokenizer: Any, directory: Path, float_dtype: str | None = None, **facts: Any
) -> None:
    """Write a complete model directory: config, generation config, weights, tokenizer with template, provenance.

    Args:
        model: a PaddleNLP causal language model.
        tokenizer: a PaddleNLP tokenizer, or the directory whose tokenizer files are copied as they are.
        directory: an existing scratch directory, see ``paddlesft.directories.new_directory``.
        float_dtype: type in which a model with quantized layers stores its other weights, where they lose nothing by
            it; the type that they have in memory when None.
        facts: entries for ``paddlesft.json``; ``kind``, ``dtype`` and ``fingerprint`` are filled in.
    """
    state = state_to_store(model)
    with quiet_paddlenlp():
        if quantized_layers(model):
            save_quantized(model, state, directory, float_dtype)
        else:
            model.save_pretrained(str(directory), state_dict=state, safe_serialization=True)
        if not isinstance(tokenizer, (str, Path)):
            tokenizer.save_pretrained(str(directory))
    if isinstance(tokenizer, (str, Path)):
        copy_tokenizer(tokenizer, directory)
    dtype = float_dtype or str(model.config.dtype)
    write_provenance(directory, **{"kind": "model", "dtype": dtype, "fingerprint": fingerprint(directory), **facts})


def state_to_store(model: Any) -> dict[str, Any]:
    """Return a model's weights by name as directories hold them: each once, but for heads that only a copy ties."""
    state = without_second_names(model)
    if family_of(model).tie_head:  # PaddleNLP itself ties no head and would compute with random numbers
        width = model.config.hidden_size  # of the only head that it takes; OPT-350M needs another one
        state |= {name: value for name, value in model.state_dict().items() if value.shape[-1] == width}
    return state


def without_second_names(model: Any) -> dict[str, Any]:
    """Return a model's weights by name, each once: a head that is the embedding too has the embedding's name only."""
    state = model.state_dict()
    decoder = f"{family_of(model).base_prefix}."  # its names come first, wherever the model lists its head
    order = sorted(state.items(), key=lambda item: item[0].startswith(decoder))
    first_of = {id(value): name for name, value in order}
    return {name: value for name, value in state.items() if first_of[id(value)] == name}


@contextlib.contextmanager
def quiet_paddlenlp(level: int = logging.WARNING) -> Any:
    """Keep paddlenlp's own messages below ``level`` out of the user's terminal."""
    from paddlenlp.utils.log import logger as upstream

    before = upstream.logger.level
    upstream.logger.setLevel(level)
    try:
        yield
    finally:
        upstream.logger.setLevel(before)
