"""Memory of a card in a layout, computed and not measured.

Weights, gradients and optimizer state: Rajbhandari et al. 2020 (ZeRO), arXiv:1910.02054, section 3. Activations:
Korthikanti et al. 2022, arXiv:2205.05198, section 4, counted here from the sizes of the model, so that grouped-query
attention and gated feed-forward blocks are right too; for the paper's own model the result is the paper's
``s b h (34 + 5 a s / h)``. Micro-batches in flight under 1F1B and its interleaved form: Narayanan et al. 2021,
arXiv:2104.04473. Not counted: the kernels' work space, communication buffers, fragmentation, CUDA itself.

Legend: ``b`` rows of a micro-batch, ``s`` tokens of a row, ``h`` hidden size, ``t`` tensor, ``p`` pipeline degree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from paddlesft.models.tensor_plans import PlannedTensor, TensorPlan
from paddlesft.parallel.layout import Layout
from paddlesft.parallel.workload import Workload


@dataclass(frozen=True)
class Memory:
    """Bytes on one card of a pipeline stage.

    Attributes:
        stage: of the pipeline.
        weights, gradients, optimizer, activations, logits: what takes them.
    """

    stage: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def estimate_memory(layout: Layout, plan: TensorPlan, work: Workload) -> list[Memory]:
    """Return the memory of a card in each pipeline stage.

    Args:
        layout: degrees and micro-batch.
        plan: the model's weights.
        work: number formats, what is trained, rows.
    """
    return [_stage_memory(layout, plan, work, stage) for stage in range(layout.pipeline)]


def worst_card(memory: list[Memory]) -> Memory:
    """Return the stage that needs most."""
    return max(memory, key=lambda one: one.total)


def outer_tensors(layout: Layout, plan: TensorPlan, stage: int) -> Iterator[PlannedTensor]:
    """Yield what a stage holds besides layers; the last one has a copy of an embedding that is the head too."""
    last = layout.pipeline - 1
    if stage == 0:
        yield from plan.embedding
    if stage == last:
        yield from plan.norm
        yield from plan.head
        if not plan.head and last > 0:
            yield plan.table


def stage_tensors(layout: Layout, plan: TensorPlan, stage: int) -> Iterator[PlannedTensor]:
    """Yield the weights of a pipeline stage, the layers' under their full names."""
    yield from outer_tensors(layout, plan, stage)
    for chunk in layout.stage_chunks(stage):
        for i in chunk:
            for tensor in plan.layer:
                yield PlannedTensor(tensor.name.format(i=i), tensor.shape, tensor.split)


def stage_numbers(layout: Layout, plan: TensorPlan, work: Workload, stage: int) -> tuple[int, int]:
    """Return how many numbers a card of a stage holds, and how many of them it trains, before sharding."""
    t = layout.tensor
    prefix = work.prefix_numbers(plan)
    if work.method == "lora":  # its targets are chosen by names, which may name single layers
        tensors = list(stage_tensors(layout, plan, stage))
        held = sum(tensor.local_size(t) for tensor in tensors)
        trained = work.trained(tensors, t)
        return held + trained, trained
    held = sum(tensor.local_size(t) for tensor in outer_tensors(layout, plan, stage))
    layers = sum(len(chunk) for chunk in layout.stage_chunks(stage))
    held += layers * sum(tensor.local_size(t) for tensor in plan.layer)
    return (held, held) if work.method == "full" else (held + prefix, prefix)


def _stage_memory(layout: Layout, plan: TensorPlan, work: Workload, stage: int) -> Memory:
    held, trained = stage_numbers(layout, plan, work, stage)
    parts = [layout.sharding if layout.stage >= needed else 1 for needed in (1, 2, 3)]
    layers = sum(len(chunk) for chunk in layout.stage_chunks(stage))
    per_layer = layer_activations(layout, plan, work)
    flying = layers_in_flight(layout, stage)
    kept = per_layer if work.recompute != "full" else recomputed_input(layout, plan, work)
    activations = int(kept * flying)
    if work.recompute == "full" and layers:
        activations += per_layer  # one layer at a time is computed again
    if not work.flash_attention:
        activations += int(mask_bytes(layout, work) * flying / max(layers, 1))
    return Memory(
        stage=stage,
        weights=_divided(held * work.weight_bytes, parts[2]) - _saved_by_codes(plan, work, layers),
        gradients=_divided(trained * work.gradient_bytes, parts[1]),
        optimizer=_divided(trained * work.state_bytes, parts[0]),
        activations=activations,
        logits=logit_bytes(layout, plan, work) if stage == layout.pipeline - 1 else 0,
    )


def _saved_by_codes(plan: TensorPlan, work: Workload, layers: int) -> int:
    """Return the bytes that layers save by quantized matrices, which no layout divides."""
    if work.quantized_bytes is None:
        return 0
    numbers = sum(tensor.size for tensor in plan.layer if len(tensor.shape) == 2)
    return int(layers * numbers * (work.weight_bytes - work.quantized_bytes))


def _divided(size: int, parts: int) -> int:
    return -(-size // parts)


def layers_in_flight(layout: Layout, stage: int) -> float:
    """Return how many layers' activations a stage keeps at most, micro-batches counted each.

    1F1B keeps ``p - i`` micro-batches in stage i (never more than there are); interleaved chunks, of which one holds
    ``1 / (p v)`` of the layers, ``2 (p - i - 1) + (v - 1) p + 1``.
    """
    layers = sum(len(chunk) for chunk in layout.stage_chunks(stage))
    p, v, m = layout.pipeline, layout.virtual, layout.accumulation
    if v == 1:
        return layers * (min(p - stage, m) if p > 1 else 1)
    return layers / v * min(2 * (p - stage - 1) + (v - 1) * p + 1, m * v)


def layer_activations(layout: Layout, plan: TensorPlan, work: Workload) -> int:
    """Return the bytes that one layer keeps of one micro-batch for its backward pass (without full recompute)."""
    t = layout.tensor
    repeated = t if layout.sequence_parallel else 1  # what tensor parallelism alone leaves on every process
    h = plan.hidden
    attention_width = plan.heads * plan.head_dim
    key_values = 2 * plan.kv_heads * plan.head_dim
    attends = 2 * h / repeated + (2 * attention_width + key_values) / t  # norm: in and out; q, k, v; input of o
    feeds = 2 * h / repeated + (3 if plan.gated else 2) * plan.ffn / t  # norm: in and out; gate, up, product
    others = 0.0  # bytes, not numbers: attention scores, and dropout's masks of one byte
    if not work.flash_attention and work.recompute not in ("core_attn", "full_attn"):
        # dropout adds a mask and a second copy
        kept = work.score_bytes + (1 + work.activation_bytes if plan.dropout else 0)
        others += plan.heads * work.length / t * kept
    if plan.dropout:
        others += 2 * h / repeated  # behind both blocks
    if layout.sequence_parallel and not work.regather:
        # PaddleNLP's column matrices each keep the whole input that they gathered
        attends += plan.column_matrices * h
    if work.recompute == "full_attn":
        attends = 2 * h / repeated
    return int(layout.micro_batch * work.length * ((attends + feeds) * work.activation_bytes + others))


def recomputed_input(layout: Layout, plan: TensorPlan, work: Workload) -> int:
    """Return the bytes of a layer's input, which is all that full recompute keeps."""
    repeated = layout.tensor if layout.sequence_parallel else 1
    return layout.micro_batch * work.length * plan.hidden * work.activation_bytes // repeated


def mask_bytes(layout: Layout, work: Workload) -> int:
    """Return the bytes of the attention mask [b, 1, s, s] of a micro-batch."""
    return layout.micro_batch * work.length**2 * work.activation_bytes


def logit_bytes(layout: Layout, plan: TensorPlan, work: Workload) -> int:
    """Return the bytes of the logits, in float32 too, and of their gradient, if every position is trained."""
    t = layout.tensor if work.divided_logits and not layout.whole_vocabulary else 1
    copy = work.activation_bytes if work.activation_bytes < 4 else 0
    return (2 * 4 + copy) * layout.micro_batch * work.length * plan.vocab // t
