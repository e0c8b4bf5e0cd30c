"""What makes a layout impossible: each rule yields the keys it looked at and a text that says found and allowed.

Rules look at a ``LayoutRequest``, the weights' plan and the family's row; they need neither paddle nor processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from paddlesft.models.families import FAMILIES
from paddlesft.models.family import Family
from paddlesft.models.tensor_plans import TensorPlan
from paddlesft.parallel.stages import stage_layers

Finding = tuple[tuple[str, ...], str]

TP, PP, SD = "tensor_parallel_degree", "pipeline_parallel_degree", "sharding_parallel_degree"
ALGORITHM = "weight_quantize_algo"


@dataclass(frozen=True)
class LayoutRequest:
    """What a config asks for, in numbers.

    Attributes:
        world_size: processes of the run.
        tensor, pipeline, virtual: degrees; 1 is none.
        sharding: degree; None where the config leaves it to the world size.
        stage: of sharding; 0 is none.
        offload: sharding keeps its state in the host's memory.
        sequence_parallel: asked for.
        order: a key of ``layout.ORDERS``.
        micro_batch, accumulation: rows of a forward pass, forward passes of a step, on one rank.
        global_batch: rows of a step that somebody asks for; None: whatever comes out.
        max_length: tokens of a row.
        generates: keys that are on and make the model generate.
        optim, amp_master_grad: as the config's keys.
        quantized: what makes the base's weights quantized ones; empty where they are floats.
    """

    world_size: int
    tensor: int = 1
    pipeline: int = 1
    sharding: int | None = 1
    stage: int = 0
    offload: bool = False
    virtual: int = 1
    sequence_parallel: bool = False
    order: str = "pp_first"
    micro_batch: int = 1
    accumulation: int = 1
    global_batch: int | None = None
    max_length: int = 2048
    generates: tuple[str, ...] = ()
    optim: str = "adamw"
    amp_master_grad: bool = False
    quantized: str = ""

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model together."""
        return self.tensor * self.pipeline

    @property
    def divides(self) -> bool:
        """Whether the degrees asked for divide the world size."""
        return self.world_size % (self.model_ranks * (self.sharding or 1)) == 0

    @property
    def sharding_degree(self) -> int:
        """The sharding degree, taken from the world size where the config leaves it open."""
        if self.sharding is not None:
            return self.sharding
        return max(self.world_size // self.model_ranks, 1) if self.stage else 1

    @property
    def data_degree(self) -> int:
        """What is left of the world size."""
        return max(self.world_size // (self.model_ranks * self.sharding_degree), 1)


def accumulation_for(request: LayoutRequest) -> int:
    """Return the micro-batches of a step that make up the global batch asked for; as they are where none is."""
    if request.global_batch is None:
        return request.accumulation
    return max(request.global_batch // (request.micro_batch * request.sharding_degree * request.data_degree), 1)


def divisors(number: int, most: int | None = None) -> list[int]:
    """Return the divisors of a number, up to ``most``."""
    return [i for i in range(1, min(number, most or number) + 1) if number % i == 0]


def find_layout_problems(request: LayoutRequest, plan: TensorPlan, family: Family) -> Iterator[Finding]:
    """Yield everything that stands against a layout, each with the keys it is about."""
    yield from _world(request)
    yield from _tensor(request, plan, family)
    yield from _sequence(request, family)
    yield from _pipeline(request, plan, family)
    yield from _sharding(request)
    yield from _batch(request)
    yield from _quantized(request)


def _or(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _world(request: LayoutRequest) -> Iterator[Finding]:
    world = request.world_size
    if request.divides:
        return
    named = [(TP, request.tensor), (PP, request.pipeline), (SD, request.sharding or 1)]
    asked = [(key, degree) for key, degree in named if degree > 1]
    whole = request.model_ranks * (request.sharding or 1)
    text = " x ".join(f"{key} {degree}" for key, degree in asked)
    total = f" = {whole}" if len(asked) > 1 else ""
    if world == 1:
        yield (
            tuple(key for key, _ in asked),
            f"found {text}{total}, but this run is one process; allowed: degrees of 1, or {whole} processes or a "
            f"multiple: paddlesft train --nproc {whole} CONFIG, or python -m paddle.distributed.launch "
            f"--nproc_per_node {whole} llm/finetune.py CONFIG. paddlesft layout shows such a run without starting it, "
            "paddlesft rehearse tries it small on the CPU.",
        )
        return
    yield (
        tuple(key for key, _ in asked),
        f"found {text}{total}, which does not divide the {world} processes of this run; "
        f"allowed: products that divide {world} ({_or(divisors(world))}), or {whole} processes or a multiple. What is "
        "left over is data parallel.",
    )


def _tensor(request: LayoutRequest, plan: TensorPlan, family: Family) -> Iterator[Finding]:
    t, world = request.tensor, request.world_size
    if t == 1:
        return
    if not family.tensor_parallel:
        yield (TP,), f"{TP}: found {t}; PaddleNLP cannot split the weights of family {family.name}; allowed: 1."
        return
    counts = [(plan.heads, "attention heads"), (plan.kv_heads, "key/value heads"), (plan.ffn, "feed-forward columns")]
    if plan.kv_heads == plan.heads:
        del counts[1]
    if not family.whole_vocabulary:
        counts.append((plan.vocab, "rows of the vocabulary"))
    common = gcd(world, *(count for count, _ in counts))
    for count, what in counts:
        if count % t:
            yield (
                (TP,),
                f"{TP}: found {t}, which does not divide the model's {count} {what}; allowed for this model on "
                f"{world} process{'es' if world > 1 else ''}: {_or(divisors(common))}.",
            )
    if request.optim == "adamw_mini":
        yield (
            ("optim", TP),
            f"optim: found adamw_mini with {TP} {t}; PaddleNLP's AdamW Mini does not know divided weights; "
            "allowed: adamw, or a degree of 1.",
        )


def _sequence(request: LayoutRequest, family: Family) -> Iterator[Finding]:
    if not request.sequence_parallel:
        return
    t = request.tensor
    if t == 1:
        yield (
            ("sequence_parallel", TP),
            f"sequence_parallel: found true with {TP} 1; it divides activations among the tensor-parallel processes; "
            f"allowed: {TP} of 2 or more, or sequence_parallel: false.",
        )
    if not family.sequence_parallel:
        able = ", ".join(row.name for row in FAMILIES if row.sequence_parallel)
        yield (
            ("sequence_parallel",),
            f"sequence_parallel: found true; PaddleNLP's model of family {family.name} does not divide sequences; "
            f"allowed: false, or a family of {able}.",
        )
    if request.max_length % t:
        yield (
            ("sequence_parallel", "max_length", TP),
            f"max_length: found {request.max_length}, which {TP} {t} does not divide; sequence_parallel cuts every row "
            f"into {t} equal parts; allowed: a multiple of {t}, for example {request.max_length // t * t or t}.",
        )
    if request.generates:
        yield (
            ("sequence_parallel", *request.generates),
            f"{' and '.join(request.generates)}: found true with sequence_parallel; replies are generated with a "
            "cache, which divided sequences do not have; allowed: false, or sequence_parallel: false.",
        )


def _pipeline(request: LayoutRequest, plan: TensorPlan, family: Family) -> Iterator[Finding]:
    p, v = request.pipeline, request.virtual
    if p == 1:
        return
    if family.pipe_class is None:
        able = ", ".join(row.name for row in FAMILIES if row.pipe_class)
        yield (
            (PP,),
            f"{PP}: found {p}; PaddleNLP has no pipeline of family {family.name} (it has {able}); allowed: 1.",
        )
    yield from _stages(request, plan)
    if v > 1 and p < 3:
        yield (
            ("virtual_pp_degree", PP),
            f"virtual_pp_degree: found {v} with {PP} {p}; Paddle's interleaved schedule needs 3 or more stages; "
            "allowed: virtual_pp_degree 1.",
        )
    if v > 1 and request.accumulation < 2 * p:
        yield (
            ("virtual_pp_degree", "gradient_accumulation_steps"),
            f"gradient_accumulation_steps: found {request.accumulation} with virtual_pp_degree {v}; the interleaved "
            f"schedule needs two micro-batches for each of the {p} stages; allowed: {2 * p} or more.",
        )
    if request.generates:
        yield (
            (PP, *request.generates),
            f"{' and '.join(request.generates)}: found true with {PP} {p}; a pipeline does not generate; "
            f"allowed: false, or {PP} 1.",
        )


def _stages(request: LayoutRequest, plan: TensorPlan) -> Iterator[Finding]:
    p, v, layers = request.pipeline, request.virtual, plan.layers
    fitting = divisors(gcd(layers, request.world_size))
    if layers < p * v:
        virtual = f" x virtual_pp_degree {v}" if v > 1 else ""
        yield (
            (PP, "virtual_pp_degree"),
            f"{PP}: found {p}{virtual}; the model has {layers} layers, fewer than stages; allowed for "
            f"{request.world_size} processes: {_or(fitting)}.",
        )
    elif v > 1 and layers % (p * v):
        yield (
            ("virtual_pp_degree", PP),
            f"virtual_pp_degree: found {v} with {PP} {p}; the interleaved schedule needs equal chunks, and "
            f"{p} x {v} does not divide {layers} layers; allowed with {PP} {p}: "
            f"{_or(divisors(layers // p)) if layers % p == 0 else 1}.",
        )
    elif v == 1 and not all(len(chunks[0]) for chunks in stage_layers(layers, p)):
        yield (
            (PP,),
            f"{PP}: found {p}; {layers} layers do not divide evenly, and Paddle would leave a stage without any; "
            f"allowed for {request.world_size} processes: {_or(fitting)}.",
        )


def _sharding(request: LayoutRequest) -> Iterator[Finding]:
    stage, n = request.stage, request.sharding_degree
    if n > 1 and not stage:
        yield (
            (SD, "sharding"),
            f"{SD}: found {n}, but sharding names no stage, so that nobody would add up the gradients of these {n}; "
            f"allowed: sharding: stage1, stage2 or stage3, or {SD} 1 (data parallel).",
        )
    if n == 1 and request.divides:
        return
    if stage > 1 and request.pipeline > 1:
        yield (
            ("sharding", PP),
            f"sharding: found stage{stage} with {PP} {request.pipeline}; PaddleNLP combines pipelines with stage1 "
            f"only; allowed: stage1, or {PP} 1.",
        )
    if stage == 3 and request.tensor > 1:
        yield (
            ("sharding", TP),
            f"sharding: found stage3 with {TP} {request.tensor}; PaddleNLP combines tensor parallelism with stage1 "
            f"and stage2 only; allowed: stage1 or stage2, or {TP} 1.",
        )
    if stage == 2 and request.offload and request.data_degree > 1:
        yield (
            ("sharding", SD),
            f"sharding: found stage2 offload with {request.data_degree} data-parallel copies; Paddle moves state to "
            f"the host in stage2 only without data parallelism; allowed: stage2, stage3 offload, or {SD} "
            f"{request.world_size // request.model_ranks}.",
        )
    if stage > 1 and request.data_degree > 1 and request.amp_master_grad:
        yield (
            ("amp_master_grad", "sharding", SD),
            f"amp_master_grad: found true with stage{stage} and {request.data_degree} data-parallel copies; Paddle "
            f"keeps master gradients in stage2 and stage3 only without data parallelism; allowed: false, or {SD} "
            f"{request.world_size // request.model_ranks}.",
        )


def _batch(request: LayoutRequest) -> Iterator[Finding]:
    asked = request.global_batch
    ranks = request.sharding_degree * request.data_degree
    rows = request.micro_batch * ranks
    if asked is not None and asked % rows:
        near = sorted({max(asked // rows, 1) * rows, -(-asked // rows) * rows})
        yield (
            ("per_device_train_batch_size", "gradient_accumulation_steps"),
            f"global batch: found {asked} rows, which {ranks} data ranks with per_device_train_batch_size "
            f"{request.micro_batch} cannot share equally; allowed: multiples of {rows}, for example "
            f"{' or '.join(map(str, near))}.",
        )


def _quantized(request: LayoutRequest) -> Iterator[Finding]:
    if not request.quantized:
        return
    why = f"the base is quantized ({request.quantized}), and its codes and scales are not divided among processes"
    allowed = "allowed: data parallel, and sharding: stage1 or stage2"
    for key, degree in ((TP, request.tensor), (PP, request.pipeline)):
        if degree > 1:
            yield (key, ALGORITHM), f"{key}: found {degree}; {why}; {allowed}, with {key} 1."
    if request.stage == 3 and request.sharding_degree > 1:
        yield ("sharding", ALGORITHM), f"sharding: found stage3; {why}; {allowed}."
