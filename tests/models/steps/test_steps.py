"""The step of every family gives the logits of PaddleNLP's own layers: ragged rows, a prefix, leaving rows, graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.errors import DataError, UserError
from paddlesft.export.static_graph import write_static_graph
from paddlesft.inference import cached_runner
from paddlesft.inference.cached_runner import CachedRunner
from paddlesft.inference.eager import EagerRunner
from paddlesft.inference.paddle_graph import PaddleGraph
from paddlesft.inference.runners import runner_of
from paddlesft.inference.step_model import EagerModel
from paddlesft.models.families import FAMILIES, family_named
from paddlesft.models.graph_directory import write_record
from paddlesft.models.steps import step_of, step_refusal
from paddlesft.models.steps.inputs import CausalInputs, Row, SlidingWindowInputs
from tests.inference.adapters import with_lora
from tests.models.decoders import blank_filling_models, proofs
from tests.models.steps.proofs import difference, logits_of, prompts_of

NAMES = [family.name for family in FAMILIES]
LLAMA3_SCALING = {
    "rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8,
}  # fmt: skip
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"fuse_attention_qkv": True, "fuse_attention_ffn": True, "num_key_value_heads": 2}),
    ("llama", {"rope_scaling_type": "linear", "rope_scaling_factor": 2.0}),
    ("llama", {"rope_scaling_type": "ntk", "rope_scaling_factor": 2.0}),
    ("llama", {"rope_scaling": LLAMA3_SCALING}),
    ("llama", {"max_position_embeddings": 8}),  # PaddleNLP's table ends there
    ("qwen2", {"num_key_value_heads": 1}),
    ("gemma", {"head_dim": 32, "num_key_value_heads": 1}),
    ("gemma", {"hidden_activation": "gelu"}),
    ("mistral", {"sliding_window": 5, "num_key_value_heads": 2}),
    ("bloom", {"n_head": 6, "hidden_size": 96}),  # slopes of no power of two
    ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ("gpt", {"normalize_before": False}),
    ("gpt", {"fuse_attention_qkv": True}),
    ("opt", {"normalize_before": False}),
    ("opt", {"fuse_attention_qkv": True}),
    ("opt", {"word_embed_proj_dim": 32}),
    ("qwen", {"fuse_attention_ffn": True}),
    ("chatglm_v2", {"apply_residual_connection_post_layernorm": True}),
]


def small(name: str, **overrides: Any) -> Any:
    made = blank_filling_models.small if name in blank_filling_models.FAMILIES else proofs.small
    return made(name, **overrides)


@pytest.fixture(scope="module")
def model() -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in made:
            made[name] = small(name)
        return made[name]

    return of


@pytest.mark.parametrize("name", NAMES)
def test_a_step_gives_the_logits_of_the_layers(name: str, model: Callable[[str], Any]) -> None:
    assert difference(model(name)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_step_sees_a_tuned_prefix(name: str) -> None:
    plain, tuned = small(name), proofs.with_prefix(small(name))
    assert difference(tuned) < 1e-5
    assert EagerModel(tuned).prefixes[None].shape[2] == 3
    assert EagerModel(plain).prefixes == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_takes_prompts_in_pieces_behind_a_prefix_and_with_adapters(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_runner, "SCORES_BYTES", 1)
    monkeypatch.setattr(cached_runner, "SHORTEST_PIECE", 4)
    window = {"sliding_window": 6} if name == "mistral" else {}
    assert difference(proofs.with_prefix(small(name, **window))) < 1e-5
    model = small(name, **window)
    before = logits_of(CachedRunner(EagerModel(model)), prompts_of(model, 9), steps=0)[0]
    tuned = with_lora(model)
    assert difference(tuned) < 1e-5
    after = logits_of(CachedRunner(EagerModel(tuned)), prompts_of(model, 9), steps=0)[0]
    assert np.abs(after - before).max() > 1e-2


@pytest.mark.parametrize(("name", "entries"), VARIANTS, ids=lambda value: str(value))
def test_a_step_follows_the_switches_of_a_config(name: str, entries: dict[str, Any]) -> None:
    assert difference(small(name, **entries)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_traced_step_computes_the_same(name: str, model: Callable[[str], Any], tmp_path: Path) -> None:
    like = EagerModel(model(name), proofs.PADDING)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r"(?i).*dy2static|.*branches")
        write_record(write_static_graph(model(name), tmp_path), tmp_path)
    graph = PaddleGraph(tmp_path, like.config, like.inputs)
    assert difference(model(name), graph) < 1e-5
    for parameter in model(name).parameters():  # as the model is, not as it will be
        parameter.set_value(parameter + 1)
    assert difference(model(name), graph) > 1e-2
    for parameter in model(name).parameters():
        parameter.set_value(parameter - 1)


def test_rows_of_a_batch_see_themselves_only() -> None:
    inputs = CausalInputs({}, pad_token_id=7)
    made = inputs([Row([1, 2, 3], 0, 2), Row([4, 5, 6, 8], 4, 2)], [[1, 2, 3], [9]], columns=8)
    assert made.input_ids.tolist() == [[1, 2, 3], [9, 7, 7]]
    assert made.position_ids.tolist() == [[0, 1, 2], [4, 4, 4]]
    assert made.last.tolist() == [2, 0]
    first, second = made.visible[:, 0].astype(int)
    assert first.tolist() == [[1, 1, *[0] * 6, *row] for row in ([1, 0, 0], [1, 1, 0], [1, 1, 1])]
    assert second[0].tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 0]


def test_a_window_ends_what_a_token_sees_but_not_the_prefix() -> None:
    inputs = SlidingWindowInputs({"sliding_window": 3})
    made = inputs([Row([1] * 4, 4, 1)], [[9, 9]], columns=6)
    assert made.visible[0, 0].astype(int).tolist() == [[1, 0, 0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 1, 0, 1, 1]]


def test_the_prompt_of_a_blank_filling_model_is_seen_in_both_directions() -> None:
    ids = blank_filling_models.IDS["chatglm"]
    prompt = [5, 6, ids["gmask_token_id"], ids["bos_token_id"]]
    inputs = family_named("chatglm").step_inputs()(ids | {"model_type": "chatglm"})
    made = inputs([Row(prompt)], [prompt], columns=1)
    assert made.visible[0, 0, :, 1:].astype(int).tolist() == [[1, 1, 1, 0]] * 3 + [[1, 1, 1, 1]]
    assert made.position_ids[0].tolist() == [[0, 1, 2, 2], [0, 0, 0, 1]]
    later = inputs([Row(prompt, 5)], [[9]], columns=8)
    assert later.position_ids[0].tolist() == [[2], [3]]
    with pytest.raises(DataError, match=r"has no \[gMASK\]<sop>.*Set chat_template to chatglm"):
        inputs([Row([5, 6])], [[5, 6]], columns=1)
    inputs.check_prompt(prompt)
    with pytest.raises(DataError, match=r"has no \[gMASK\]<sop>"):
        inputs.check_prompt([5, 6])


@pytest.mark.parametrize(
    ("name", "entries", "reason"),
    [
        ("llama", {"rope_scaling_type": "dynamic_ntk", "rope_scaling_factor": 2.0}, "depend on the length of the row"),
        ("llama", {"alibi": True}, "alibi: true"),
        ("gpt", {"hidden_activation": "relu"}, "can only run gelu"),
    ],
)
def test_what_a_step_cannot_do_is_run_by_the_layers_themselves(name: str, entries: dict[str, Any], reason: str) -> None:
    odd = small(name, **entries)
    assert reason in step_refusal(odd)
    assert isinstance(runner_of(odd), EagerRunner)
    with pytest.raises(UserError, match=reason):
        step_of(odd)
