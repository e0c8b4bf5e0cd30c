"""Keys about several processes: how model, data and optimiser state are divided among them."""

from dataclasses import dataclass
from typing import Literal

from paddlesft.config.fields import field
from paddlesft.config.parallel_switches import described

_WHOLE = "unified_checkpoint says whether checkpoints hold whole weights; paddlesft split-shards divides them"
_SEQUENCE = "sep and context parallelism"
_EXPERT = "expert parallelism"
_AUTO = "auto-parallel training"
_BELONGS = "it belongs to {}, which this version does not have"


@dataclass
class ParallelConfig:
    """Several processes"""

    tensor_parallel_degree: int = field(
        -1, "Processes that share each layer.", minimum=-1, aliases=("tensor_model_parallel_size",)
    )
    pipeline_parallel_degree: int = field(
        -1,
        "Processes that share the stack of layers.",
        minimum=-1,
        aliases=("pipeline_model_parallel_size",),
    )
    sharding_parallel_degree: int = field(
        -1,
        "Processes that share the optimiser state (sharding).",
        minimum=-1,
        aliases=("sharding_degree",),
    )
    sharding: str = field(
        "",
        "What they share: stage1 (optimiser), stage2 (and gradients), stage3 (and weights); with offload to the host.",
    )
    sep_parallel_degree: int = field(-1, "Processes that share a sequence (sep).", minimum=-1, unbuilt=_SEQUENCE)
    context_parallel_degree: int = field(
        -1, "Processes that share a sequence (ring).", minimum=-1, aliases=("context_parallel_size",), unbuilt=_SEQUENCE
    )
    sequence_parallel: bool = field(False, "Divide activations by sequence under tensor parallelism.")
    expert_parallel_degree: int = field(
        -1, "Processes that share the experts.", minimum=-1, aliases=("expert_model_parallel_size",), unbuilt=_EXPERT
    )
    expert_tensor_parallel_degree: int = field(-1, "Processes that share each expert.", minimum=-1, unbuilt=_EXPERT)
    use_expert_parallel: bool = field(False, "Divide the experts of a mixture model.", unbuilt=_EXPERT)
    virtual_pp_degree: int = field(
        1, "Virtual stages on a process.", minimum=1, aliases=("virtual_pipeline_model_parallel_size",)
    )
    enable_auto_parallel: bool = field(False, "Let paddle divide the model.", unbuilt=_AUTO)

    hybrid_parallel_topo_order: Literal["pp_first", "sharding_first"] | None = field(
        None,
        "Which ranks are neighbours, from the outside in: data, pipeline, sharding, tensor (pp_first; the default), or "
        "data, sharding, pipeline, tensor (sharding_first).",
    )
    tensor_parallel_config: str = field("", f"Switches: {described('tensor_parallel_config')}.")
    pipeline_parallel_config: str = field("", f"Switches: {described('pipeline_parallel_config')}.")
    sharding_parallel_config: str = field("", f"Switches: {described('sharding_parallel_config')}.")
    tensor_parallel_output: bool = field(
        False,
        "Leave the logits divided.",
        no_effect="logits of a divided vocabulary stay divided in training, which gives the same loss with less memory",
    )
    pp_recompute_interval: int = field(
        1, "Layers between recomputes in a stage.", no_effect="no_recompute_layers says which layers are left out"
    )
    force_reshard_pp: bool = field(False, "Divide the stages anew when loading.", no_effect=_WHOLE)
    sharding_parallel_mesh_dimension: str = field("dp", "Mesh axis of sharding.", no_effect=_BELONGS.format(_AUTO))
    sharding_comm_buffer_size_MB: int = field(
        -1,
        "Size of the fused gradient in sharding.",
        no_effect="gradients are not fused: checkpoints keep the optimizer's state for each weight by its name",
    )
    save_sharded_model: bool = field(False, "Each process saves its part.", no_effect=_WHOLE)
    load_sharded_model: bool = field(False, "Each process loads its part.", no_effect=_WHOLE)
    save_sharding_stage1_model_include_freeze_params: bool = field(
        False, "Save frozen weights in those parts.", no_effect=_WHOLE
    )
    data_parallel_config: str = field("", "Switches of data parallelism.", no_effect=_BELONGS.format(_AUTO))
    sequence_parallel_config: str = field("", "Switches of sequence parallelism.", no_effect=_BELONGS.format(_AUTO))
    fuse_sequence_parallel_allreduce: bool = field(
        False,
        "Join the sums of sequence parallelism.",
        no_effect="gradients of weights that see some of the tokens are summed once a step, not in each backward pass",
    )
    split_inputs_sequence_dim: bool = field(True, "Cut the inputs for sep.", no_effect=_BELONGS.format(_SEQUENCE))
    expert_max_capacity: int = field(2**32, "Most tokens of an expert.", no_effect=_BELONGS.format(_EXPERT))
    expert_min_capacity: int = field(1, "Fewest tokens of an expert.", no_effect=_BELONGS.format(_EXPERT))
    auto_parallel_resume_form_hybrid_parallel: bool = field(
        False, "Resume an auto-parallel run from a hybrid one.", no_effect=_BELONGS.format(_AUTO)
    )

    hang_timeout: float = field(
        1800.0,
        "Seconds without a finished step, evaluation batch or checkpoint after which a run of several processes is "
        "ended and the processes that lag behind are named. 0: never.",
        minimum=0,
    )
    local_rank: int = field(-1, "Set by the launcher; leave it alone.", minimum=-1)
    ddp_find_unused_parameters: bool | None = field(None, "Search for weights without gradient in data parallelism.")
    distributed_dataloader: bool = field(
        False, "Only the first process of a group reads data.", no_effect="every process reads the rows it computes"
    )
    log_on_each_node: bool = field(True, "Log once per machine instead of once.")
    save_on_each_node: bool = field(
        False,
        "Save on every machine instead of the first.",
        no_effect="each file of a checkpoint is written once; share output_dir, or copy the checkpoint to all machines",
    )


def is_sharding(text: str) -> bool:
    """Whether ``text`` is a value of the key sharding: at most one stage, with or without offload behind it."""
    stage, _, behind = text.partition(" ")
    return text == "" or (stage in ("stage1", "stage2", "stage3") and behind.strip() in ("", "offload"))
