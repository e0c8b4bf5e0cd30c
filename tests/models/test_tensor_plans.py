"""Names, shapes and splits of weights from config.json are those of PaddleNLP's models."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from paddlesft.models import tensor_plans
from paddlesft.models.families import FAMILIES, family_named
from paddlesft.models.family import Family
from paddlesft.models.tensor_plans import PlannedTensor, TensorPlan
from tests.tiny_families import FAMILY_FIXTURES

NAMES = [family.name for family in FAMILIES]


def tiny_config(family: Family, **changes: Any) -> dict[str, Any]:
    sizes = FAMILY_FIXTURES[family.name].sizes
    mark = {family.config_mark: sizes[family.config_mark]} if family.config_mark else {}
    return {**sizes, **mark, "vocab_size": 512, "model_type": family.model_types[0], **changes}


def assert_is_the_model(family: Family, config: dict[str, Any]) -> TensorPlan:
    from paddlesft.models.shapes import expected_shapes

    plan = family.plan(config)
    expected = expected_shapes(config)
    for name in plan.buffers:
        del expected[name]
    if plan.tied_name:
        # OPT's head is made with the hidden size and replaced by the embedding once that is loaded
        assert expected.pop(plan.tied_name) in (plan.table.shape, (plan.vocab, plan.hidden))
    assert {tensor.name: tensor.shape for tensor in plan.tensors()} == expected
    assert plan.parameters == sum(int(np.prod(shape)) for shape in expected.values())
    return plan


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_names_every_weight_of_the_model_with_its_shape(name: str) -> None:
    family = family_named(name)
    plan = assert_is_the_model(family, tiny_config(family))
    assert plan.layers == 2
    assert (plan.hidden, plan.heads, plan.vocab) == (64, 4, 512)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": None}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("gemma", {"attention_bias": True}),
        ("opt", {"word_embed_proj_dim": 32, "normalize_before": False}),
        ("qwen", {"no_bias": False}),
        ("chatglm_v2", {"add_qkv_bias": False, "add_bias_linear": True}),
        ("glm", {"block_position_encoding": False}),
    ],
)
def test_entries_that_add_or_remove_weights_are_followed(name: str, changes: dict[str, Any]) -> None:
    family = family_named(name)
    assert_is_the_model(family, tiny_config(family, **changes))


@pytest.mark.parametrize("name", NAMES)
def test_entries_that_are_left_out_have_the_defaults_of_the_config_class(name: str) -> None:
    import paddlenlp.transformers as zoo

    family = family_named(name)
    full = getattr(zoo, family.config_class)()
    plan = family.plan({})
    assert plan == family.plan(full.to_dict())
    assert (plan.hidden, plan.layers, plan.heads) == (
        full.hidden_size, family.num_layers(full), family.num_heads(full)
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_split_as_the_tensor_parallel_mapping_of_the_model_splits_them(name: str) -> None:
    import paddle
    import paddlenlp.transformers as zoo

    family = family_named(name)
    config = tiny_config(family)
    full = getattr(zoo, family.config_class).from_dict(dict(config))
    full.tensor_parallel_degree, full.tensor_parallel_rank = 2, 0
    tensors = list(family.plan(config).tensors())
    actions = getattr(zoo, family.causal_lm).get_tensor_parallel_convert_actions(
        full, [tensor.name for tensor in tensors], is_split=True, ignore_error=True
    )
    for tensor in tensors:
        if tensor.name in actions:
            whole = np.zeros(tensor.shape, dtype="float32")
            try:
                part = actions[tensor.name](whole)
            except ValueError:  # ChatGLM2's fused matrices are put together by paddle.concat
                part = actions[tensor.name](paddle.to_tensor(whole))
            assert np.prod(part.shape) == tensor.local_size(2), tensor.name
            axis = tensor.split
            assert axis is not None
            assert part.shape[axis] * 2 == tensor.shape[axis], tensor.name
        else:
            assert tensor.split is None, tensor.name


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_which_models_know_sequence_parallelism(name: str) -> None:
    import importlib
    import inspect

    import paddlenlp.transformers as zoo

    family = family_named(name)
    module = importlib.import_module(getattr(zoo, family.causal_lm).__module__)
    source = inspect.getsource(module)
    assert family.sequence_parallel == ("config.sequence_parallel" in source)
    assert family.whole_vocabulary == ("vocab_size % config.tensor_parallel_degree == 0" in source)


def test_known_models_have_their_published_sizes() -> None:
    # Touvron et al. 2023 (arXiv:2302.13971): 6.7 billion; meta-llama/Llama-2-7b: 6,738,415,616
    assert tensor_plans.llama({}).parameters == 6_738_415_616
    # mistralai/Mistral-7B-v0.1: 7,241,732,096
    assert tensor_plans.mistral({}).parameters == 7_241_732_096
    # Qwen/Qwen2-0.5B: 494,032,768
    qwen2 = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
             "intermediate_size": 4864, "tie_word_embeddings": True}  # fmt: skip
    assert tensor_plans.qwen2(qwen2).parameters == 494_032_768


def test_a_tensor_that_the_degree_does_not_divide_stays_whole() -> None:
    assert PlannedTensor("x", (8, 6), 1).local_size(2) == 24
    assert PlannedTensor("x", (8, 6), 1).local_size(4) == 48
    assert PlannedTensor("x", (8, 6)).local_size(2) == 48


def test_collectives_of_a_layer_are_counted_by_its_matrices() -> None:
    llama, bloom = tensor_plans.llama({}), tensor_plans.bloom({})
    assert (llama.column_matrices, llama.row_matrices) == (5, 2)
    assert (bloom.column_matrices, bloom.row_matrices) == (2, 2)


def test_plans_are_made_without_paddle() -> None:
    code = (
        "import sys; from paddlesft.models.families import FAMILIES; [f.plan({}) for f in FAMILIES];"
        "print(sorted({'paddle', 'paddlenlp', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(out.stdout) == []
