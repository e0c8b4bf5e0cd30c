"""From a config, a world size and a model's config.json to a checked ``Layout``, or to all that is wrong at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from paddlesft.config.loader import in_order_of_lines
from paddlesft.errors import ConfigError
from paddlesft.models.family import Family
from paddlesft.models.tensor_plans import TensorPlan
from paddlesft.parallel.layout import Layout, describe
from paddlesft.parallel.layout_rules import LayoutRequest, accumulation_for, find_layout_problems
from paddlesft.parallel.nearest import nearest_layouts

if TYPE_CHECKING:
    from paddlesft.config.resolve import RunConfig

BATCH_KEYS = ("per_device_train_batch_size", "gradient_accumulation_steps")


def check_layout(
    run: RunConfig,
    world_size: int,
    model_config: Mapping[str, Any],
    family: Family,
    global_batch: int | None = None,
) -> Layout:
    """Check everything about how a run is divided, before paddle is imported or a process is started.

    Args:
        run: the resolved configuration; it is not changed (see ``derive_layout``).
        world_size: processes of the run.
        model_config: content of the model's config.json in Paddle's layout.
        family: the model's row of the family table.
        global_batch: rows of an optimizer step that have to come out, whatever the layout; the accumulation follows.

    Returns:
        The layout.

    Raises:
        ConfigError: all problems, and the nearest layouts of this world size that would work.
        ValueError: there is no process.
    """
    if world_size < 1:
        raise ValueError(f"a run has one process or more, not {world_size}")
    plan = family.plan(model_config)
    request = replace(request_of(run, world_size, global_batch), quantized=_quantized(run, model_config))
    findings = list(find_layout_problems(request, plan, family))
    if findings:
        raise ConfigError(_explain(run, request, plan, family, findings))
    return layout_of(request, plan, find_notices(request, plan))


def fewest_processes(run: RunConfig) -> int:
    """Return the smallest world size that the degrees of a config fit."""
    training = run.training
    sharding = training.sharding_parallel_degree
    if sharding < 1:
        sharding = 2 if training.sharding else 1
    return max(training.tensor_parallel_degree, 1) * max(training.pipeline_parallel_degree, 1) * sharding


def request_of(run: RunConfig, world_size: int, global_batch: int | None = None) -> LayoutRequest:
    """Read the numbers that a layout depends on out of a configuration."""
    training, data = run.training, run.data
    sharding = run.training.sharding_parallel_degree
    stage = int(training.sharding[5]) if training.sharding[:6] in ("stage1", "stage2", "stage3") else 0
    request = LayoutRequest(
        world_size=world_size,
        tensor=max(training.tensor_parallel_degree, 1),
        pipeline=max(training.pipeline_parallel_degree, 1),
        sharding=sharding if sharding > 0 else None,
        stage=stage,
        offload="offload" in training.sharding,
        virtual=training.virtual_pp_degree,
        sequence_parallel=training.sequence_parallel,
        order=training.hybrid_parallel_topo_order or "pp_first",
        micro_batch=training.per_device_train_batch_size,
        accumulation=training.gradient_accumulation_steps,
        global_batch=global_batch,
        max_length=data.max_length,
        generates=tuple(
            key
            for key, on in (
                ("eval_with_do_generation", data.eval_with_do_generation),
                ("do_predict", training.do_predict),
            )
            if on
        ),
        optim=training.optim,
        amp_master_grad=training.amp_master_grad and (training.bf16 or training.fp16),
    )
    return replace(request, accumulation=accumulation_for(request))


def _quantized(run: RunConfig, model_config: Mapping[str, Any]) -> str:
    """Say what makes the base's weights quantized ones; empty where they stay floats."""
    if run.model.weight_quantize_algo:
        return f"weight_quantize_algo {run.model.weight_quantize_algo}"
    return "by paddlesft quantize" if (model_config.get("quantization_config") or {}).get("kinds") else ""


def layout_of(request: LayoutRequest, plan: TensorPlan, notices: tuple[str, ...] = ()) -> Layout:
    """Return the layout of a request that has no problems."""
    sharding = request.sharding_degree
    return Layout(
        data=request.data_degree,
        pipeline=request.pipeline,
        sharding=sharding,
        tensor=request.tensor,
        stage=request.stage if sharding > 1 else 0,
        virtual=request.virtual if request.pipeline > 1 else 1,
        sequence_parallel=request.sequence_parallel,
        order=request.order,
        micro_batch=request.micro_batch,
        accumulation=request.accumulation,
        layers=plan.layers,
        heads=plan.heads,
        kv_heads=plan.kv_heads,
        vocab=plan.vocab,
        whole_vocabulary=plan.vocab % request.tensor != 0,
        notices=notices,
    )


def find_notices(request: LayoutRequest, plan: TensorPlan) -> tuple[str, ...]:
    """Return what is allowed but worth knowing."""
    p, m, v = request.pipeline, request.accumulation, request.virtual
    found = []
    if request.stage and request.sharding_degree == 1:
        found.append(f"sharding stage{request.stage} has no effect: no process is left to share with.")
    if v > 1 and p == 1:
        found.append(f"virtual_pp_degree {v} has no effect without a pipeline.")
    if plan.vocab % request.tensor:
        size = plan.vocab * plan.hidden * (2 if plan.head else 1)
        found.append(
            f"tensor_parallel_degree {request.tensor} does not divide the vocabulary of {plan.vocab}: each process "
            f"holds embedding and head whole ({size / 1e6:,.0f} million numbers)."
        )
    if p > 1 and plan.layers % p:
        found.append(f"pipeline_parallel_degree {p} does not divide {plan.layers} layers: stages have unequal work.")
    if p > 1:
        idle = (p - 1) / (m * v + p - 1)
        if idle > 0.25:
            found.append(
                f"the stages wait for each other {idle:.0%} of the time with {m} micro-batch{'es' if m > 1 else ''}; "
                f"gradient_accumulation_steps {4 * (p - 1)} or more makes that 20 % or less."
            )
    return tuple(found)


def derive_layout(run: RunConfig, layout: Layout) -> list[tuple[str, str, str]]:
    """Write what follows from a layout into a configuration, each with its reason, and say the sizes of a step.

    Args:
        run: the configuration that the layout was made from; changed.
        layout: of ``check_layout``.

    Returns:
        Rows (what, value, why) that are no keys of a config: degrees and rows of an optimizer step.
    """
    training, data = run.training, run.data
    if layout.accumulation != training.gradient_accumulation_steps:
        run.derive("gradient_accumulation_steps", layout.accumulation, "the global batch asked for")
    if layout.sharding > 1 and training.sharding_parallel_degree != layout.sharding:
        rest = layout.tensor * layout.pipeline
        run.derive(
            "sharding_parallel_degree", layout.sharding,
            f"{layout.world_size} processes" + (f" / {rest} that hold one model" if rest > 1 else ""),
        )  # fmt: skip
    if training.sharding and not layout.stage:
        run.derive("sharding", "", "no process is left to share with")
    fixed = [text for on, text in (
        (layout.pipeline > 1, "pipeline stages exchange tensors of one shape"),
        (layout.sequence_parallel, "sequence parallelism cuts rows of one length"),
    ) if on]  # fmt: skip
    if fixed and not data.pad_to_max_length:
        run.derive("pad_to_max_length", True, "; ".join(fixed))
    rows = layout.micro_batch * layout.accumulation
    if layout.pipeline > 1 and training.do_eval and training.per_device_eval_batch_size != rows:
        run.derive(
            "per_device_eval_batch_size", rows,
            "a pipeline evaluates in its training shape: per_device_train_batch_size * gradient_accumulation_steps",
        )  # fmt: skip
    return [
        ("data parallel degree", str(layout.data), _data_reason(layout)),
        ("global batch", f"{layout.global_batch} rows", (
            f"per_device_train_batch_size {layout.micro_batch} * gradient_accumulation_steps {layout.accumulation} * "
            f"{layout.data_ranks} data ranks"
        )),
    ]  # fmt: skip


def _data_reason(layout: Layout) -> str:
    taken = [
        f"{what} {degree}"
        for what, degree in (("tensor", layout.tensor), ("pipeline", layout.pipeline), ("sharding", layout.sharding))
        if degree > 1
    ]
    if not taken:
        return "all processes"
    return f"{layout.world_size} processes / " + (f"({' * '.join(taken)})" if len(taken) > 1 else taken[0])


def _explain(
    run: RunConfig, request: LayoutRequest, plan: TensorPlan, family: Family,
    findings: list[tuple[tuple[str, ...], str]],
) -> str:  # fmt: skip
    texts = in_order_of_lines([_placed(run, keys, text) for keys, text in findings])
    world = f"{request.world_size} process{'es' if request.world_size > 1 else ''}"
    head = f"{len(texts)} problem{'s' if len(texts) > 1 else ''} in the parallel layout for {world}:"
    lines = [head, *(f"  {text}" for text in texts)]
    near = nearest_layouts(request, plan, family)
    if near:
        lines.append(f"Nearest layouts of {world} that would work:")
        for i, (one, changed) in enumerate(near, 1):
            lines.append(f"  {i}. {describe(layout_of(one, plan))}  (change {', '.join(changed)})")
    else:
        lines.append(f"No other degrees for {world} would help: change the keys above.")
    return "\n".join(lines)


def _placed(run: RunConfig, keys: tuple[str, ...], text: str) -> str:
    places = dict.fromkeys(run.origins[key].place for key in keys if key in run.origins and run.was_set(key))
    lines: dict[str, list[str]] = {}  # of each file
    for place in places:
        file, _, line = place.rpartition(":")
        lines.setdefault(file or place, []).extend([line] if file else [])
    named = [f"{file}:{', '.join(numbers)}" if numbers else file for file, numbers in lines.items()]
    return f"{' and '.join(named)}: {text}" if named else text
