"""Rows of one batch with adapters of their own compute what the merged model, the prefix model and the base compute.

The truth is each model alone, run by PaddleNLP's own layers (``EagerRunner``): LoRA merged into the weights where the
base has floats.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlesft.errors import UserError
from paddlesft.inference.cached_runner import CachedRunner
from paddlesft.inference.eager import EagerRunner
from paddlesft.inference.engine import Engine, EngineLimits
from paddlesft.inference.engine_requests import GenerationRequest
from paddlesft.inference.generation import generate
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.inference.several_adapters import AdaptedModel, AdapterDirectory
from paddlesft.inference.step_model import EagerModel
from paddlesft.models import load_model
from paddlesft.models.decoders import decoder_of
from paddlesft.models.quantized.directory import quantized_layers
from paddlesft.models.steps.inputs import Row
from paddlesft.tuning.lora import load_lora
from paddlesft.tuning.lora_targets import linear_names
from paddlesft.tuning.prefix import load_prefix
from tests.inference.adapters import write_adapter
from tests.tiny_families import write_tiny_family
from tests.tiny_quantized import write_quantized

STEPS = 3
# adapter and prompt's length of the rows, in the order in which they arrive
ROWS = [("wide", 9), (None, 4), ("narrow", 12), ("prefix", 7), ("wide", 3), ("prefix", 10)]


class World:
    """A base with two LoRA adapters of different rank, scaling and targets, and a prefix."""

    def __init__(self, base: Path, root: Path) -> None:
        self.base = base
        model = load_model(base)
        self.quantized = bool(quantized_layers(model))
        first = linear_names(model)[0].rpartition(".")[2]
        narrow = {"lora_target_modules": first, "lora_rank": 6, "lora_alpha": 8, "rslora": True}
        self.adapters = {
            "wide": AdapterDirectory(write_adapter(root / "wide", base, "lora"), "lora"),
            "narrow": AdapterDirectory(write_adapter(root / "narrow", base, "lora", seed=5, lora=narrow), "lora"),
            "prefix": AdapterDirectory(write_adapter(root / "prefix", base, "prefix"), "prefix"),
        }
        self.model = AdaptedModel(model, self.adapters)
        draw = np.random.default_rng(0)
        decoder = decoder_of(model)
        self.prompts = [decoder.as_prompt(draw.integers(5, 400, length).tolist()) for _, length in ROWS]

    def alone(self, name: str | None) -> paddle.nn.Layer:
        """The model of one adapter by itself."""
        model = load_model(self.base)
        if name == "prefix":
            model = load_prefix(model, self.adapters[name].path)
        elif name is not None:
            model = load_lora(model, self.adapters[name].path, merge=not self.quantized)
        model.eval()
        return model


@pytest.fixture(scope="module")
def world(tiny_family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    made: dict[str, World] = {}

    def of(name: str) -> World:
        if name not in made:
            root = tmp_path_factory.mktemp("world")
            family, _, how = name.partition(" ")
            base = tiny_family(family)
            if how == "fused":
                base = write_tiny_family(family, root / "base", fuse_attention_qkv=True)
            elif how:
                base = write_quantized(root / "base", base, how)
            made[name] = World(base, root)
        return made[name]

    return of


def arriving(model: Any, prompts: list[list[int]], adapters: list[str | None]) -> list[list[np.ndarray]]:
    """Greedy logits of rows that join the batch one after the other, while the first ones write, and leave early."""
    batch = CachedRunner(model)
    logits: list[list[np.ndarray]] = [[] for _ in prompts]
    here: list[int] = []
    while len(here) or not logits[-1]:
        arrived = sum(map(bool, logits))
        if arrived < len(prompts):
            single = CachedRunner(model)
            single.begin([Row(prompts[arrived], adapter=adapters[arrived])])
            while (first := single.advance(5)) is None:
                pass
            batch.join(single)
            here.append(arrived)
            logits[arrived].append(np.asarray(first)[0])
        new = np.asarray(batch.step(np.array([logits[row][-1].argmax() for row in here])))
        for place, row in enumerate(here):
            logits[row].append(new[place])
        going = [place for place, row in enumerate(here) if len(logits[row]) <= STEPS]
        if len(going) < len(here):
            batch.keep(going)
            here = [here[place] for place in going]
    return logits


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "llama int8",
        "llama nf4",
        "qwen2",
        "mistral",
        "gpt fused",
        "opt",
        "bloom",
        "qwen",
        "chatglm",
        "chatglm_v2",
        "glm",
    ],
)
def test_rows_with_their_own_adapters_are_what_each_model_computes_alone(
    name: str, world: Callable[[str], World]
) -> None:
    this = world(name)
    adapters = [adapter for adapter, _ in ROWS]
    found = arriving(this.model, this.prompts, adapters)
    plain = arriving(this.model, this.prompts, [None] * len(ROWS))
    wanted: dict[int, list[np.ndarray]] = {}
    for adapter in dict.fromkeys(adapters):
        model = this.alone(adapter)
        for row in (row for row, one in enumerate(adapters) if one == adapter):
            runner = EagerRunner(model)
            wanted[row] = [np.asarray(runner.prefill([this.prompts[row]]))[0]]
            for _ in range(STEPS):
                wanted[row].append(np.asarray(runner.step(np.array([wanted[row][-1].argmax()])))[0])
    for row, adapter in enumerate(adapters):
        assert [one.argmax() for one in found[row]] == [one.argmax() for one in wanted[row]]
        np.testing.assert_allclose(np.stack(found[row]), np.stack(wanted[row]), atol=1e-4)
        assert (np.abs(found[row][0] - plain[row][0]).max() > 1e-2) == (adapter is not None)


def test_the_engine_writes_what_each_model_writes_alone(world: Callable[[str], World]) -> None:
    this, options = world("llama"), SamplingOptions(max_new_tokens=12)
    adapters = [None, *this.adapters]
    wanted = {adapter: generate(this.alone(adapter), this.prompts, options) for adapter in adapters}
    engine = Engine(this.model, EngineLimits(max_rows=3, prefill_tokens=4)).start()
    try:
        for again in (False, True):  # then the prompts are known, by adapter
            asked = [(row, adapter) for row in range(len(this.prompts)) for adapter in adapters]
            requests = [GenerationRequest(this.prompts[row], options, adapter=adapter) for row, adapter in asked]
            tickets = [engine.submit(request) for request in requests]
            for (row, adapter), ticket in zip(asked, tickets):
                finished, tokens = ticket.result()
                assert [token.token_id for token in tokens] == wanted[adapter][row].token_ids
                assert (finished.cached_tokens > 0) == again
    finally:
        engine.close()


def test_rows_of_the_base_do_not_notice_adapters(world: Callable[[str], World]) -> None:
    this = world("llama")
    lengths = [len(prompt) for prompt in this.prompts]
    without_prefix = [None if adapter == "prefix" else adapter for adapter, _ in ROWS]
    logits = []
    for model, adapters in ((this.model, without_prefix), (EagerModel(this.alone(None)), [None] * len(lengths))):
        runner = CachedRunner(model)
        runner.begin([Row(prompt, adapter=adapter) for prompt, adapter in zip(this.prompts, adapters)])
        logits.append([np.asarray(runner.advance()), np.asarray(runner.step(np.arange(len(lengths))))])
    for mixed, plain in zip(*logits):
        for row, adapter in enumerate(without_prefix):
            assert (mixed[row] == plain[row]).all() == (adapter is None)


def test_an_adapter_that_is_not_there_is_named(world: Callable[[str], World]) -> None:
    with pytest.raises(UserError, match=r"There is no adapter other here; there are wide, narrow, prefix\."):
        arriving(world("llama").model, [[5]], ["other"])


def test_a_model_without_a_step_takes_no_adapters_by_name(tmp_path: Path) -> None:
    base = load_model(write_tiny_family("llama", tmp_path / "alibi", alibi=True))
    with pytest.raises(UserError, match=r"\(family llama\) is not: alibi.*serve the merged model: paddlesft merge-lor"):
        AdaptedModel(base, {})
