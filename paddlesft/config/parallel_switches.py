"""Switches of the keys ``..._parallel_config``: which PaddleNLP knows, and what becomes of each here.

The trainer hands out whole optimizer steps and sums gradients once a step, weighted by trained tokens. Switches that
only choose how PaddleNLP's own loop would have done that have no effect; they are taken out before PaddleNLP sees them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

_ONCE = "a step's loss is divided by its trained tokens, once"
_AUTO = "it belongs to auto-parallel training, which this version does not have"
_WHOLE_STEP = "gradients are summed behind the last micro-batch of a step, so that each token weighs the same"
_BY_NAME = "checkpoints keep the optimizer's state for each weight by its name, not in one fused block"
_ORDER = "this version has Paddle's 1F1B and interleaved schedules only"


@dataclass(frozen=True)
class Switch:
    """What one switch does here.

    Attributes:
        meaning: what it does; for the reference.
        idle: why it changes nothing here; empty where it counts.
        refused: why it cannot be had; empty where it can.
        needs: another switch of the key without which it changes nothing.
    """

    meaning: str
    idle: str = ""
    refused: str = ""
    needs: str = ""


_ASYNC = "enable_mp_async_allreduce"
SWITCHES: dict[str, dict[str, Switch]] = {
    "tensor_parallel_config": {
        _ASYNC: Switch("sum the gradient of a layer's input while that of its weight is computed"),
        "enable_mp_skip_c_identity": Switch("leave out copies in front of divided layers", needs=_ASYNC),
        "enable_mp_fused_linear_param_grad_add": Switch("add weight gradients in one kernel (GPU)", needs=_ASYNC),
        "enable_sp_async_reduce_scatter": Switch("the same as the first with sequence_parallel"),
        "sync_param": Switch("after each step copy weights that are not divided from the first process"),
        "sync_grad": Switch("before each step copy their gradients"),
        "sync_moment": Switch("after each step copy the optimizer's state of these"),
        "enable_delay_scale_loss": Switch("scale gradients instead of losses", idle=_ONCE),
        "replace_with_c_embedding": Switch("divide the embedding by rows", idle=_AUTO),
        "replace_with_parallel_cross_entropy": Switch("divide the loss", idle=_AUTO),
    },
    "pipeline_parallel_config": {
        "disable_p2p_cache_shape": Switch("tell the shape with every tensor that a stage sends"),
        "disable_partial_send_recv": Switch("send whole tensors between stages under tensor parallelism"),
        "disable_batch_p2p_comm": Switch("send and receive one by one"),
        "enable_overlap_p2p_comm": Switch("send while the next micro-batch is computed (virtual_pp_degree)"),
        "enable_clear_every_step_cache": Switch("free cached memory after each step (GPU)"),
        "enable_delay_scale_loss": Switch("scale gradients instead of losses", idle=_ONCE),
        "enable_release_grads": Switch("free gradients after each step", idle="the key release_grads does that"),
        "enable_timer": Switch("print times of the stages", idle="train_log.jsonl holds the time of each step"),
        "enable_dp_comm_overlap": Switch(
            "sum gradients during the backward pass", refused="PaddleNLP refuses it because its results are not exact"
        ),
        "enable_sharding_comm_overlap": Switch("the same with stage1", idle=_WHOLE_STEP),
        "best_unbalanced_scheduler": Switch("another interleaved schedule", refused=_ORDER),
        "use_dualpipev": Switch("the DualPipeV schedule", refused=_ORDER),
        "enable_split_backward": Switch("compute weight gradients later", idle=_AUTO),
        "enable_send_recv_overlap": Switch("send while computing", idle=_AUTO),
    },
    "sharding_parallel_config": {
        "disable_stage1_reduce_avg": Switch("stage1: add gradients and divide, instead of averaging in one go"),
        "enable_release_grads": Switch("free gradients after each step", idle="the key release_grads does that"),
        "enable_stage1_tensor_fusion": Switch("fuse small gradients before they are sent", idle=_BY_NAME),
        "enable_stage1_overlap": Switch("send gradients during the backward pass", idle=_WHOLE_STEP),
        "enable_stage2_overlap": Switch("the same with stage2", idle=_WHOLE_STEP),
        "enable_stage1_broadcast_overlap": Switch("send weights during the next forward pass", idle=_WHOLE_STEP),
        "enable_stage1_allgather_overlap": Switch("the same with split_param", idle=_WHOLE_STEP),
        "split_param": Switch("divide each tensor instead of the list of tensors", idle=_BY_NAME),
        "enable_fuse_optimizer_states": Switch("keep the state in one block", idle=_BY_NAME),
        "enable_tensor_fusion": Switch("fuse small gradients", idle=_AUTO),
        "enable_overlap": Switch("send gradients during the backward pass", idle=_AUTO),
    },
}


def switches_in(text: str) -> list[str]:
    """Return the switches of a key's value, which commas or blanks separate; each once, in order."""
    return list(dict.fromkeys(text.replace(",", " ").split()))


def effective(key: str, text: str) -> str:
    """Return the value that PaddleNLP gets: the switches that count here."""
    known = SWITCHES[key]
    return " ".join(name for name in switches_in(text) if name in known and not known[name].idle)


def switch_problems(key: str, text: str) -> Iterator[str]:
    """Yield what is wrong with a value: switches that do not exist, and those that cannot be had."""
    known = SWITCHES[key]
    allowed = ", ".join(name for name, switch in known.items() if not switch.refused)
    for name in switches_in(text):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            yield f"{key}: unknown switch {name!r}; allowed: {allowed} (blanks between them).{hint}"
        elif known[name].refused:
            yield f"{key}: {name} cannot be had: {known[name].refused}. Remove it."


def idle_switches(key: str, text: str) -> Iterator[str]:
    """Yield a line for each switch of a value that changes nothing."""
    known, given = SWITCHES[key], switches_in(text)
    for name in given:
        switch = known.get(name)
        if switch and switch.idle:
            yield f"{name} of {key} has no effect: {switch.idle}."
        elif switch and switch.needs and switch.needs not in given:
            yield f"{name} of {key} has no effect without {switch.needs}."


def described(key: str) -> str:
    """Return the switches of a key that count, with what they do, for its help text."""
    return "; ".join(f"{n} ({s.meaning})" for n, s in SWITCHES[key].items() if not (s.idle or s.refused))
