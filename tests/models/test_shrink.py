"""Small models that can be divided as the large ones are: every family, its ratios, its divisibility."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.families import FAMILIES, family_named
from paddlesft.models.family import Family
from paddlesft.models.load import load_model
from paddlesft.models.shrink import Division, shrink_config, write_random_model
from paddlesft.models.weights import read_weights

NAMES = [family.name for family in FAMILIES]
PUBLISHED: dict[str, dict[str, Any]] = {  # sizes of a published model each; what is left out is the class's default
    "llama": {"hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80,
              "intermediate_size": 28672, "vocab_size": 32000, "rope_theta": 5e5},
    "qwen2": {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "num_hidden_layers": 28,
              "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": True},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "gemma": {"hidden_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
              "num_hidden_layers": 28, "intermediate_size": 24576, "vocab_size": 256000},
    "bloom": {"n_embed": 4096, "n_layer": 30, "num_attention_heads": 32, "vocab_size": 250880},
    "gpt": {"hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 24, "intermediate_size": 8192},
    "opt": {"hidden_size": 1024, "num_attention_heads": 16, "ffn_dim": 4096, "word_embed_proj_dim": 512,
            "num_hidden_layers": 24, "normalize_before": False},
    "qwen": {"seq_length": 8192, "intermediate_size": 22016},
    "chatglm": {"num_layers": 28, "gmask_token_id": 130001},
    "chatglm_v2": {"multi_query_group_num": 2, "num_layers": 28, "add_qkv_bias": True},
    "glm": {"num_layers": 48, "hidden_size": 4096, "num_attention_heads": 64},
}  # fmt: skip


def published(family: Family) -> dict[str, Any]:
    return {"model_type": family.model_types[0], **PUBLISHED[family.name]}


def divisions(family: Family) -> tuple[Division, Division]:
    """The largest degrees of a usual run, and those of its rehearsal."""
    tensor = min(8, family.plan(published(family)).kv_heads)
    pipeline = 2 if family.pipe_class else 1
    return Division(tensor, 2 * pipeline), Division(min(tensor, 2), pipeline)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_model_keeps_ratios_and_divides(name: str) -> None:
    family = family_named(name)
    before, after = divisions(family)
    large = family.plan(published(family))
    small = family.plan(shrink_config(published(family), family, before, after))
    assert small.parameters < 4_000_000
    assert small.heads * large.kv_heads == large.heads * small.kv_heads
    assert (small.kv_heads // after.tensor == 1) == (large.kv_heads // before.tensor == 1)
    for size in (small.heads, small.kv_heads, small.ffn, small.vocab, small.hidden):
        assert size % after.tensor == 0
    assert small.ffn / small.hidden == pytest.approx(large.ffn / large.hidden, rel=0.15)
    assert (small.heads * small.head_dim == small.hidden) == (large.heads * large.head_dim == large.hidden)
    assert (small.gated, bool(small.head), small.tied_name) == (large.gated, bool(large.head), large.tied_name)
    assert [t.name for t in small.layer] == [t.name for t in large.layer]
    assert [t.name for t in small.embedding] == [t.name for t in large.embedding]
    assert (small.layers % after.pipeline == 0) == (large.layers % before.pipeline == 0)
    assert not small.dropout


@pytest.mark.parametrize("name", NAMES)
def test_a_small_model_loads_and_computes(name: str, tmp_path: Path) -> None:
    family = family_named(name)
    config = shrink_config(published(family), family, *divisions(family))
    write_random_model(tmp_path, config, family, seed=3)
    stored, layout = read_weights(tmp_path)
    assert layout == "np"
    model = load_model(tmp_path)  # refuses missing weights and other shapes
    for key, value in model.state_dict().items():
        if key in stored:
            np.testing.assert_array_equal(value.numpy(), stored[key].load())
    if not family.one_reply_per_row:  # those need their marks in the row
        ids = paddle.to_tensor([[3, 5, 7, 9]])
        logits = model(ids)
        logits = logits[0] if isinstance(logits, tuple) else logits
        assert logits.shape == [1, 4, family.plan(config).vocab]
        assert bool(paddle.isfinite(logits).all())


def test_weights_depend_on_seed_and_name_only(tmp_path: Path) -> None:
    family = family_named("llama")
    config = shrink_config(published(family), family, Division(), Division())
    made = {}
    for label, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / label).mkdir()
        write_random_model(tmp_path / label, config, family, seed)
        made[label] = {name: tensor.load() for name, tensor in read_weights(tmp_path / label)[0].items()}
    name = "llama.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(made["a"][name], made["b"][name])
    assert not np.array_equal(made["a"][name], made["c"][name])
    assert not np.array_equal(made["a"][name], made["a"][name.replace("layers.0", "layers.1")])


@pytest.mark.parametrize(
    ("vocab", "before", "after", "divisible"), [(32000, 8, 2, True), (32001, 8, 2, False), (32002, 8, 2, False)]
)
def test_the_vocabulary_divides_or_not_as_in_the_run(vocab: int, before: int, after: int, divisible: bool) -> None:
    family = family_named("llama")
    config = {**published(family), "vocab_size": vocab}
    for known in (None, 1000, 1001):
        small = family.plan(shrink_config(config, family, Division(before), Division(after), known))
        assert (small.vocab % after == 0) is divisible
        assert small.vocab >= (known or 256)


@pytest.mark.parametrize(
    ("layers", "before", "after", "small"),
    [
        (80, Division(1, 1), Division(1, 1), 2),
        (80, Division(1, 8), Division(1, 2), 4),
        (8, Division(1, 8), Division(1, 4), 4),  # one layer in each stage
        (80, Division(1, 4, 2), Division(1, 4, 2), 16),
        (30, Division(1, 4), Division(1, 4), 9),  # stages of unequal length
        (1, Division(), Division(), 1),
    ],
)
def test_layers_are_dealt_out_as_in_the_run(layers: int, before: Division, after: Division, small: int) -> None:
    family = family_named("llama")
    config = {**published(family), "num_hidden_layers": layers}
    assert family.plan(shrink_config(config, family, before, after)).layers == small


def test_entries_of_another_origin_are_left_out_and_others_stay() -> None:
    family = family_named("llama")
    config = {**published(family), "torch_dtype": "bfloat16", "dtype": "bfloat16", "fuse_attention_qkv": True}
    small = shrink_config(config, family, Division(), Division())
    assert small["dtype"] == "float32"
    assert not {"torch_dtype", "fuse_attention_qkv"} & set(small)
    assert (small["rope_theta"], small["model_type"]) == (5e5, "llama")


def test_a_size_that_no_entry_decides_about_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from paddlesft.models import shrink

    family = family_named("llama")
    monkeypatch.setitem(shrink.ENTRIES, "ffn", ("width",))
    with pytest.raises(ModelDirectoryError) as caught:
        shrink_config(published(family), family, Division(), Division())
    assert str(caught.value) == (
        "config.json: ffn of this model cannot be made smaller (it stays 28672, wanted 448): none of width decides "
        "about it."
    )
