"""A rank's parts of a model come from the whole model's directory, in any of its forms, without reading the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.models import load_config, load_model, write_hugging_face
from paddlesft.models.directory import read_config
from paddlesft.models.divided import fill_parts, refuse_homeless
from paddlesft.models.families import FAMILIES, family_named
from paddlesft.models.load import paddle_directory, save_model_directory
from paddlesft.models.stored import stored_weights
from paddlesft.models.weights import PADDLE_LAYOUT, NewTensor, read_weights, write_weights
from tests.checkpoints.shards import write_even_family

NAMES = [family.name for family in FAMILIES if family.tensor_parallel]


def empty_parts(name: str, directory: Path, degree: int = 2) -> dict[str, paddle.Tensor]:
    """Zeros in the shapes of one rank's parts."""
    own = {}
    for tensor in family_named(name).plan(read_config(directory)).tensors():
        shape = list(tensor.shape)
        if tensor.split is not None and shape[tensor.split] % degree == 0:
            shape[tensor.split] //= degree
        own[tensor.name] = paddle.zeros(shape)
    return own


def filled(name: str, directory: Path, rank: int) -> dict[str, np.ndarray]:
    own = empty_parts(name, directory)
    whole = load_config(directory).to_dict()
    stored = fill_parts(own, directory, whole, family_named(name), degree=2, rank=rank)
    assert stored == set(stored_weights(directory))
    return {key: tensor.numpy() for key, tensor in own.items()}


def cut_by_paddlenlp(name: str, directory: Path, rank: int) -> dict[str, np.ndarray]:
    """The parts that PaddleNLP's own functions cut."""
    import paddlenlp.transformers as zoo

    family, config, weights = family_named(name), load_config(directory), stored_weights(directory)
    config.tensor_parallel_degree, config.tensor_parallel_rank = 2, rank
    actions = getattr(zoo, family.causal_lm).get_tensor_parallel_convert_actions(
        config, list(weights), is_split=True, ignore_error=True
    )
    parts = {}
    for key, tensor in weights.items():
        array = tensor.make()
        # ChatGLM2's functions put tensors together, the others cut arrays
        given = paddle.to_tensor(array) if name == "chatglm_v2" else array
        parts[key] = np.asarray(actions[key](given)) if key in actions else array
    return parts


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family name -> directory of its tiny model with an even vocabulary."""
    root, known = tmp_path_factory.mktemp("even"), {}

    def directory(name: str) -> Path:
        if name not in known:
            known[name] = write_even_family(name, root / name)
        return known[name]

    return directory


@pytest.mark.parametrize("name", NAMES)
def test_ranks_get_the_parts_that_paddlenlp_cuts(name: str, even: Callable[[str], Path]) -> None:
    for rank in (0, 1):
        wanted = cut_by_paddlenlp(name, even(name), rank)
        for key, array in filled(name, even(name), rank).items():
            np.testing.assert_array_equal(array, wanted[key], err_msg=key)


def test_other_forms_of_a_directory_give_the_same_parts(
    even: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PADDLESFT_HOME", str(tmp_path / "home"))
    source = even("llama")
    wanted = filled("llama", source, rank=1)
    pickled = tmp_path / "pickled"
    load_model(source).save_pretrained(str(pickled), safe_serialization=False)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    (sharded / "config.json").write_bytes((source / "config.json").read_bytes())
    write_weights(sharded, stored_weights(source), PADDLE_LAYOUT, max_shard_bytes=100_000)
    for directory in (pickled, sharded, paddle_directory(write_hugging_face(source, tmp_path / "hf"))):
        found = filled("llama", directory, rank=1)
        for key, array in wanted.items():
            np.testing.assert_array_equal(found[key], array, err_msg=f"{directory.name}: {key}")


def test_half_precision_is_widened_and_narrowed_exactly(even: Callable[[str], Path], tmp_path: Path) -> None:
    source = even("llama")
    tensors = {
        key: NewTensor("BF16", tensor.shape, lambda tensor=tensor: tensor.make().astype("bfloat16"))
        for key, tensor in stored_weights(source).items()
    }
    write_weights(tmp_path, tensors, PADDLE_LAYOUT)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    own = {key: tensor.astype("bfloat16") for key, tensor in empty_parts("llama", tmp_path).items()}
    fill_parts(own, tmp_path, load_config(tmp_path).to_dict(), family_named("llama"), degree=2, rank=0)
    wanted = filled("llama", tmp_path, rank=0)
    for key, tensor in own.items():
        np.testing.assert_array_equal(tensor.astype("float32").numpy(), wanted[key], err_msg=key)


def test_only_the_part_of_a_weight_is_read(even: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensor: Any) -> None:
        raise AssertionError(f"{tensor.name} is read whole")

    from paddlesft.models.weights import StoredTensor

    monkeypatch.setattr(StoredTensor, "load", refuse)
    filled("llama", even("llama"), rank=0)
    name, tensor = next(iter(read_weights(even("llama"))[0].items()))
    assert isinstance(tensor.mapped(), np.memmap) and tensor.mapped().shape == tensor.shape, name


def test_a_vocabulary_that_the_degree_does_not_divide_stays_whole(tmp_path: Path) -> None:
    source = write_even_family("llama", tmp_path / "llama", vocab_size=1027)
    parts = filled("llama", source, rank=1)
    embedding = stored_weights(source)["llama.embed_tokens.weight"].make()
    np.testing.assert_array_equal(parts["llama.embed_tokens.weight"], embedding)


def test_a_tied_head_is_read_once(tmp_path: Path) -> None:
    source = write_even_family("qwen2", tmp_path / "qwen2", tie_word_embeddings=True)
    (tmp_path / "out").mkdir()
    save_model_directory(load_model(source), source, tmp_path / "out")
    assert "lm_head.weight" not in filled("qwen2", tmp_path / "out", rank=1)


def test_weights_of_other_sizes_are_refused(even: Callable[[str], Path], tmp_path: Path) -> None:
    source = even("llama")
    tensors = dict(stored_weights(source))
    name = "llama.layers.1.mlp.up_proj.weight"
    tensors[name] = NewTensor("F32", (64, 96), lambda: np.zeros((64, 96), dtype=np.float32))
    write_weights(tmp_path, tensors, PADDLE_LAYOUT)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    wanted = rf"1 weights have other sizes than its config.json says: {name} is \[64, 96\] instead of \[64, 128\]\."
    with pytest.raises(ModelDirectoryError, match=wanted):
        filled("llama", tmp_path, rank=0)


def test_weights_that_divided_layers_have_no_place_for_are_refused(tmp_path: Path) -> None:
    source = write_even_family("qwen", tmp_path / "qwen", no_bias=False)
    stored = stored_weights(source)
    divided = [name for name in stored if not (".mlp." in name and name.endswith("bias"))]
    config = load_config(source).to_dict()
    with pytest.raises(ModelDirectoryError, match=r"no place for 6 weights of this model: qwen.h.0.mlp.c_proj.bias"):
        refuse_homeless(source, divided, stored, config)
    refuse_homeless(source, list(stored), stored, config)
    refuse_homeless(source, list(stored), [*stored, "an.old.buffer"], config)


def test_weights_whose_division_is_unknown_are_refused(tmp_path: Path) -> None:
    source = write_even_family("qwen", tmp_path / "qwen", fuse_attention_ffn=True)
    name = "qwen.h.0.mlp.gate_up_fused_proj.weight"
    own, config = {name: paddle.zeros([64, 128])}, load_config(source).to_dict()
    with pytest.raises(
        ModelDirectoryError, match=rf"no rule by which 1 weights of this model are divided .*: {name}\."
    ):
        fill_parts(own, source, config, family_named("qwen"), degree=2, rank=0)


def test_upstream_leaves_biases_of_qwen_out() -> None:
    """When this fails, PaddleNLP's divided feed-forward block has biases, and the refusal can go."""
    import inspect

    from paddlenlp.transformers.qwen.modeling import QWenMLP

    assert "has_bias=not config.no_bias" not in inspect.getsource(QWenMLP)


@pytest.mark.parametrize(
    ("name", "entries", "key"),
    [
        ("opt", {"word_embed_proj_dim": 32}, "opt.embeddings.project_in.weight"),
        ("chatglm_v2", {"add_bias_linear": True}, "chatglm_v2.encoder.layers.0.mlp.dense_h_to_4h.bias"),
    ],
)
def test_weights_without_a_rule_of_paddlenlp_are_divided(
    name: str, entries: dict[str, Any], key: str, tmp_path: Path
) -> None:
    import paddlenlp.transformers as zoo

    source = write_even_family(name, tmp_path / name, **entries)
    config = load_config(source)
    config.tensor_parallel_degree = 2
    rules = getattr(zoo, family_named(name).causal_lm).get_tensor_parallel_convert_actions(
        config, list(stored_weights(source)), is_split=False, ignore_error=True
    )
    assert key not in rules  # when this fails, the rule of our own can go
    whole = stored_weights(source)[key].make()
    parts = [filled(name, source, rank)[key] for rank in (0, 1)]
    if whole.ndim == 1:  # two projections, each divided by itself
        parts = [half for pair in zip(*(np.split(part, 2) for part in parts)) for half in pair]
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), whole)
