"""Pipeline stages: what a rank holds of PaddleNLP's pipeline classes, under the names that the whole model has.

Fleet's ``PipelineLayer`` lines a model's layers up (embedding, decoder layers, last norm, head), and a rank builds its
share of the line. What PaddleNLP (3.0.0b4) makes of that is used as it is, but for these points, which are mended here:

* names: ChatGLM2's class leaves the first part of every name out, and a head that is the embedding has a name of its
  own that no file knows. ``state_dict()`` and ``named_parameters()`` of a stage speak the whole model's names, by
  which files are read and the optimizer decides what decays (a last norm is not recognised by its number alone);
* a matrix that two stages share is marked by a comparison that never fits, so that clipping would count it twice;
* recompute: ChatGLM2's layers do none, Qwen's and GPT's use a form that loses the gradients of a first stage whose
  embeddings are frozen, and only Llama's can leave single layers out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import paddle
from paddle import nn
from paddle.distributed.fleet.meta_parallel import PipelineLayer, SharedLayerDesc
from paddle.distributed.fleet.utils import recompute

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.divided import empty_model, fill_parts, refuse_homeless
from paddlesft.models.families import family_of
from paddlesft.models.family import Family
from paddlesft.models.load import chosen_dtype, load_config, paddle_directory, quiet_paddlenlp, refuse_missing
from paddlesft.models.quantized.origin import refuse_quantized
from paddlesft.models.shapes import Skeleton, skeleton_of
from paddlesft.models.stored import stored_weights


def load_stage(
    directory: str | Path,
    dtype: str | None = None,
    for_training: bool = False,
    tensor_parallel: tuple[int, int] = (1, 0),
    sequence_parallel: bool = False,
    virtual: int = 1,
) -> Any:
    """Load this rank's stage of a model directory; Fleet has been started with the pipeline's degree.

    Args:
        directory: as for ``load.load_model``; holds the whole model.
        dtype: as there.
        for_training: as there.
        tensor_parallel: as there.
        sequence_parallel: as there.
        virtual: chunks of each stage (interleaved schedule).

    Returns:
        A ``PipelineLayer`` that is a PaddleNLP model too.

    Raises:
        ModelDirectoryError: weights are missing or damaged, do not fit the config, the dtype is unknown, or the family
            has no pipeline class.
    """
    directory = paddle_directory(directory)
    refuse_quantized(directory, "to divide a model into stages (pipeline_parallel_degree)")
    config = load_config(directory)
    family = family_of(config)
    if family.pipe_class is None:
        raise ModelDirectoryError(f"{directory}: PaddleNLP has no pipeline class for the family {family.name}.")
    used = chosen_dtype(directory, dtype or config.dtype or "float32")
    whole = config.to_dict()
    skeleton = skeleton_of(whole)
    stored = stored_weights(directory)
    # on every rank all weights are looked for, so that all of them end with one message
    weights = skeleton.shapes.keys() - skeleton.second_names.keys() - skeleton.buffers.keys()
    refuse_missing(directory, weights, stored)
    config.tensor_parallel_degree, config.tensor_parallel_rank = tensor_parallel
    config.sequence_parallel, config.virtual_pp_degree = sequence_parallel, virtual
    import paddlenlp.transformers as zoo

    with quiet_paddlenlp(logging.ERROR):
        stage = empty_model(getattr(zoo, family.pipe_class), config, directory, used)
    _name_as_whole(stage, family, skeleton)
    _mark_shared(stage)
    own = parameters_of(stage)
    fill_parts(own, directory, whole, family, *tensor_parallel)
    here = {name.rpartition(".")[0] for name in own}  # layers of this stage
    refuse_homeless(directory, own, [name for name in weights if name.rpartition(".")[0] in here], whole)
    family.fix_model(stage, lambda name: name in stored)
    stage.train() if for_training else stage.eval()
    return stage


def parameters_of(stage: PipelineLayer) -> dict[str, Any]:
    """Return the parameters of a stage by their names in the whole model."""
    return dict(stage.named_parameters())


def chunks_of(stage: PipelineLayer) -> list[list[Any]]:
    """Return the lists of what a stage runs, one for each of its chunks, in the order of the forward pass.

    What changes a layer's place in a list changes what runs; the layers' parameters stay registered where they are.
    """
    chunks = stage.get_model_chunks()
    return [stage.run_function] if chunks is None else [chunk.get_run_function() for chunk in chunks]


def decoder_layers(stage: PipelineLayer) -> dict[int, nn.Layer]:
    """Return the decoder layers of a stage by their numbers in the whole model."""
    bounds = [stage._start_pos] if stage.get_num_virtual_stages() == 1 else stage._start_poss
    count = family_of(stage.config).num_layers(stage.config)
    return {
        begin + place - 1: layer  # the line begins with the embedding
        for begin, chunk in zip(bounds, chunks_of(stage))
        for place, layer in enumerate(chunk)
        if 1 <= begin + place <= count
    }


def is_last_stage(stage: PipelineLayer) -> bool:
    """Whether the last norm and the head are on this rank."""
    return stage._stage_id == stage._num_stages - 1


def recompute_layers(stage: PipelineLayer) -> None:
    """Let the decoder layers of a stage be computed again in the backward pass, but for ``no_recompute_layers``."""
    stage._recompute_interval = 0  # Fleet's own
    kept = getattr(stage.config, "no_recompute_layers", None) or ()
    for number, layer in decoder_layers(stage).items():
        layer.enable_recompute = False  # PaddleNLP's own
        if number not in kept:
            layer.forward = partial(_run_again_in_backward, layer)


def _run_again_in_backward(layer: nn.Layer, tensors: Any) -> Any:
    forward = partial(type(layer).forward, layer)
    if not (layer.training and paddle.is_grad_enabled()):
        return forward(tensors)
    return recompute(forward, tensors, use_reentrant=False)


def _name_as_whole(stage: PipelineLayer, family: Family, skeleton: Skeleton) -> None:
    """Make a stage speak the whole model's names; adapters put on it later inherit them."""
    seen: set[str] = set()
    for entry in stage._sequential_layers:
        layer, prefix = entry["layer"], entry["name_prefix"]
        longer = f"{family.base_prefix}.{prefix}."
        if any(name.startswith(longer) for name in skeleton.shapes):
            entry["name_prefix"] = longer.removesuffix(".")
        elif isinstance(layer, SharedLayerDesc) and layer.layer_name in seen:
            first = skeleton.second_names.get(f"{prefix}.weight")
            if first is not None:
                entry["name_prefix"] = first.removesuffix(".weight")
        if isinstance(layer, SharedLayerDesc):
            seen.add(layer.layer_name)
    stage._single_to_pp_mapping = None  # made from the names above when it is asked for
    stage.named_parameters = partial(_named_parameters, stage)


def _named_parameters(stage: PipelineLayer, prefix: str = "", include_sublayers: bool = True) -> Iterator[Any]:
    stage.state_dict()  # makes the mapping where it is not made yet
    for name, parameter in type(stage).named_parameters(stage, "", include_sublayers):
        name = stage._pp_to_single_mapping.get(name, name)
        yield f"{prefix}.{name}" if prefix else name, parameter


def _mark_shared(stage: PipelineLayer) -> None:
    """Mark matrices that two stages hold, so that one of them counts in the norm of the gradients.

    ``PipelineLayer._synchronize_shared_weights`` (paddlepaddle 3.3.1) means to, but compares the parameter's name with
    that of the attribute.
    """
    for shared in stage.shared_comm.values():
        for attribute in shared["weight_attr"]:
            getattr(shared["layer"], attribute).is_firstly_shared = stage.global_rank == min(shared["ranks"])
