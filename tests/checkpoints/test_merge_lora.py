"""Merged models compute what base + adapter compute, are complete, and wrong bases are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from paddlesft.checkpoints import merge_lora as module
from paddlesft.checkpoints.merge_lora import merge_lora
from paddlesft.errors import CheckpointError, ModelDirectoryError, UserError
from paddlesft.models import load_model, load_tokenizer, read_provenance
from paddlesft.models.provenance import fingerprint
from paddlesft.models.stored import stored_weights
from paddlesft.models.weights import PADDLE_LAYOUT, NewTensor, read_weights, write_weights
from paddlesft.tuning.lora import load_lora
from tests.checkpoints.adapters import write_adapter
from tests.models.test_against_torch import paddle_logits
from tests.models.test_hugging_face import tree_hash
from tests.tiny_models import write_tiny_llama


@pytest.fixture(scope="module")
def base(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with weights large enough that logits move visibly."""
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny", smollm2, initializer_range=0.2)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / "lora", base, name=str(base))


def test_merged_model_is_complete_and_equal(base: Path, adapter: Path, tmp_path: Path) -> None:
    before = tree_hash(base), tree_hash(adapter)
    report = merge_lora(base, adapter, tmp_path / "merged")
    assert (tree_hash(base), tree_hash(adapter)) == before
    assert (report.base_check, report.dtype, report.updated, report.replaced) == ("matches", "float32", 14, 0)
    assert report.comparison.passed and report.comparison.tokens > 40 and not report.notices
    assert report.effect > 100 * report.comparison.max_abs_diff

    prompts = [[5, 6, 7, 8], list(range(100, 140))]
    theirs = paddle_logits(load_lora(load_model(base), adapter), prompts)
    for ours, theirs_row in zip(paddle_logits(load_model(tmp_path / "merged"), prompts), theirs):
        np.testing.assert_allclose(ours, theirs_row, atol=report.comparison.bound)
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "paddlesft.json"} <= names
    assert load_tokenizer(tmp_path / "merged").chat_template is not None
    facts = read_provenance(tmp_path / "merged")
    assert facts["base"]["fingerprint"] == fingerprint(base) and facts["base"]["check"] == "matches"
    assert facts["adapter_fingerprint"] == fingerprint(adapter) and facts["fingerprint"] == fingerprint(report.output)
    assert (facts["chat_template"], facts["method"]) == ("chatml", "lora")
    assert facts["merge"]["max_abs_logit_diff"] == report.comparison.max_abs_diff


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", "BF16"), ("float16", "F16"), ("float32", "F32")])
def test_types(dtype: str, stored: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    report = merge_lora(base, adapter, tmp_path / "merged", dtype=dtype)
    tensors, _ = read_weights(tmp_path / "merged")
    assert {tensor.dtype for tensor in tensors.values()} == {stored}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == dtype == report.dtype
    assert report.comparison.dtype == dtype and report.comparison.passed


def test_sum_is_made_in_float32_and_rounded_once(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A bfloat16 base keeps its type; W + delta is not rounded before the addition."""
    import ml_dtypes

    half = tmp_path / "half"
    shutil.copytree(base, half)
    tensors = {n: NewTensor("BF16", t.shape, t.make) for n, t in stored_weights(base).items()}
    write_weights(half, tensors, PADDLE_LAYOUT)
    report = merge_lora(half, adapter, tmp_path / "merged", force=True)
    assert report.dtype == "bfloat16" and report.base_check == "forced"
    name = "llama.layers.0.self_attn.q_proj"
    weight = stored_weights(half)[f"{name}.weight"].make().astype(np.float32)
    low = {k: t.make() for k, t in module.read_adapter(adapter).tensors.items()}
    exact = weight + np.float32(2.0) * (low[f"{name}.lora_A"] @ low[f"{name}.lora_B"])
    found = stored_weights(tmp_path / "merged")[f"{name}.weight"].make()
    np.testing.assert_array_equal(found, exact.astype(ml_dtypes.bfloat16))


def test_base_is_taken_from_the_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    report = merge_lora(None, adapter, tmp_path / "merged")
    assert report.base == base.resolve() and report.base_check == "matches"
    bare = write_adapter(tmp_path / "bare", base)
    with pytest.raises(CheckpointError, match=r"does not say which base model .* --model_name_or_path"):
        merge_lora(None, bare, tmp_path / "other")
    (bare / "paddlesft.json").write_text(json.dumps({"base": {"name": str(tmp_path / "gone"), "path": "gone"}}))
    with pytest.raises(CheckpointError, match=r"The base of .*bare cannot be found: .*gone.* --model_name_or_path"):
        merge_lora(None, bare, tmp_path / "other")


def test_wrong_base_is_refused_by_fingerprint(adapter: Path, smollm2: Path, tmp_path: Path) -> None:
    """Same shapes, other weights: only the fingerprint can tell."""
    other = write_tiny_llama(tmp_path / "other", smollm2, seed=99, initializer_range=0.2)
    with pytest.raises(
        CheckpointError, match=r"Wrong base: .* was trained on .*tiny with fingerprint sha256:.*--force"
    ):
        merge_lora(other, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    report = merge_lora(other, adapter, tmp_path / "merged", force=True)
    assert report.base_check == "forced" and report.notices[0].startswith("Forced: the adapter was trained on")
    assert read_provenance(tmp_path / "merged")["base"]["check"] == "forced"


def test_adapter_of_another_tool_is_checked_by_shape(base: Path, smollm2: Path, tmp_path: Path) -> None:
    bare = write_adapter(tmp_path / "bare", base)
    report = merge_lora(base, bare, tmp_path / "merged")
    assert report.base_check == "unknown" and "only names and shapes were checked" in report.notices[0]
    wider = write_tiny_llama(tmp_path / "wider", smollm2, hidden_size=96)
    with pytest.raises(
        CheckpointError, match=r"does not fit the base .*down_proj.weight is \[128, 96\] .* and 11 more"
    ):
        merge_lora(wider, bare, tmp_path / "no")
    shorter = write_tiny_llama(tmp_path / "shorter", smollm2, num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.down_proj.weight is not in the base"):
        merge_lora(shorter, bare, tmp_path / "no")


def test_tied_head_is_stored_once(smollm2: Path, tmp_path: Path) -> None:
    """paddlenlp saves the tied head a second time; the merged model does not have it."""
    base = write_tiny_llama(tmp_path / "tied", smollm2, tie_word_embeddings=True, initializer_range=0.2)
    assert "lm_head.weight" in stored_weights(base)
    lora = write_adapter(tmp_path / "lora", base, "tied")
    merge_lora(base, lora, tmp_path / "merged")
    assert "lm_head.weight" not in stored_weights(tmp_path / "merged")


@pytest.mark.parametrize(
    "overrides", [{"rslora": True}, {"lora_plus_scale": 16.0}, {"lora_target_modules": ["q_proj"]}]
)
def test_scaling_variants(overrides: dict, base: Path, tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora", base, "b", **overrides)
    report = merge_lora(base, lora, tmp_path / "merged")
    assert report.scaling == pytest.approx(4.0 if "rslora" in overrides else 2.0)
    assert report.updated == (2 if "lora_target_modules" in overrides else 14)
    assert report.effect > 100 * report.comparison.max_abs_diff


def test_weights_trained_as_a_whole_replace_the_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Biases and trainable modules lie in the adapter as whole weights."""
    import paddle

    lora = tmp_path / "lora"
    shutil.copytree(adapter, lora)
    state = paddle.load(str(lora / "lora_model_state.pdparams"))
    state["llama.norm.weight"] = paddle.full([64], 1.5)
    paddle.save(state, str(lora / "lora_model_state.pdparams"))
    config = json.loads((lora / "lora_config.json").read_text())
    (lora / "lora_config.json").write_text(json.dumps({**config, "trainable_modules": [".*norm.weight"]}))
    tensors = module.merged_tensors(module.read_adapter(lora), stored_weights(base), None)
    np.testing.assert_array_equal(tensors["llama.norm.weight"].make(), np.full(64, 1.5, np.float32))


def test_bfloat16_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Adapters trained in bfloat16 store A and B in it."""
    import paddle

    lora = tmp_path / "lora"
    shutil.copytree(adapter, lora)
    state = paddle.load(str(lora / "lora_model_state.pdparams"))
    rounded = {name: value.astype("bfloat16") for name, value in state.items()}
    paddle.save(rounded, str(lora / "lora_model_state.pdparams"))
    name = "llama.layers.0.self_attn.q_proj"
    delta = module.read_adapter(lora).delta(name)
    full = module.read_adapter(adapter).delta(name)
    assert 0 < np.abs(delta - full).max() < 0.02 * np.abs(full).max()


def test_wrong_merge_leaves_nothing_behind(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.Adapter.delta
    monkeypatch.setattr(module.Adapter, "delta", lambda self, layer: real(self, layer) * 1.5)
    with pytest.raises(
        CheckpointError,
        match=r"does not compute what the adapter model does: .* ABOVE the bound .*merged was not written",
    ):
        merge_lora(base, adapter, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_useless_and_drowned_adapters_are_said(base: Path, tmp_path: Path) -> None:
    untrained = write_adapter(tmp_path / "untrained", base, "b", size=0.0)
    report = merge_lora(base, untrained, tmp_path / "m1")
    assert report.effect == 0 and "does not change the base model at all" in report.notices[0]
    faint = write_adapter(tmp_path / "faint", base, "b", size=1e-5)
    report = merge_lora(base, faint, tmp_path / "m2", dtype="bfloat16")
    assert "Rounding to bfloat16 moves the logits further" in report.notices[0]


def test_outputs_that_would_destroy_something(base: Path, adapter: Path, tmp_path: Path) -> None:
    for target, text in ((base, "is the base itself"), (adapter, "is the adapter itself")):
        with pytest.raises(CheckpointError, match=text):
            merge_lora(base, adapter, target, overwrite=True)
        with pytest.raises(CheckpointError, match=r"lies in the directory of the .* choose another directory"):
            merge_lora(base, adapter, target / "merged")
        assert not (target / "merged").exists()
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine").write_text("precious")
    with pytest.raises(UserError, match="a directory that is not empty"):
        merge_lora(base, adapter, tmp_path / "merged")
    merge_lora(base, adapter, tmp_path / "merged", overwrite=True)
    assert not (tmp_path / "merged" / "mine").exists()


def test_adapter_directory_errors(base: Path, adapter: Path, tmp_path: Path) -> None:
    def refused(path: Path, message: str, kind: type[Exception] = ModelDirectoryError) -> None:
        with pytest.raises(kind, match=message):
            merge_lora(base, path, tmp_path / "merged")

    refused(tmp_path / "absent", r"lora_path: .*absent is not a directory")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"is no LoRA directory: it has no lora_config.json. Found: nothing")
    (tmp_path / "empty" / "prefix_config.json").write_text("{}")
    refused(tmp_path / "empty", r"holds a Prefix-Tuning adapter, .* paddlesft chat --prefix_path")
    (tmp_path / "empty" / "prefix_config.json").unlink()
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "empty", r"adapter of Hugging Face PEFT .* Turn it into one .*: paddlesft import-peft")

    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    config = json.loads((copy / "lora_config.json").read_text())
    weights = copy / "lora_model_state.pdparams"
    for key in ("use_mora", "pissa", "loraga"):
        (copy / "lora_config.json").write_text(json.dumps({**config, key: True}))
        refused(copy, r"cannot be merged: it uses .*. Use it as an adapter instead", CheckpointError)
    (copy / "lora_config.json").write_text(json.dumps({**config, "r": 16}))
    refused(copy, r"says r = 16, but .*lora_A has shape .* The files belong to different runs")
    (copy / "lora_config.json").write_text('{"r": 8}')
    refused(copy, r"lora_config.json is damaged \(KeyError: 'lora_alpha'\)")
    (copy / "lora_config.json").write_text(json.dumps(config))
    weights.rename(copy / "lora_model_state.tp00.pdparams")
    refused(copy, r"holds the shards of a tensor-parallel adapter")
    (copy / "lora_model_state.tp00.pdparams").unlink()
    refused(copy, r"has a lora_config.json but no weights \(lora_model_state.pdparams\)")
    weights.write_bytes(b"garbage")
    refused(copy, r"lora_model_state.pdparams is damaged or incomplete")
    assert not (tmp_path / "merged").exists()


def test_missing_matrix_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    import paddle

    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    state = paddle.load(str(copy / "lora_model_state.pdparams"))
    state.pop("llama.layers.0.self_attn.q_proj.lora_B")
    paddle.save(state, str(copy / "lora_model_state.pdparams"))
    with pytest.raises(
        ModelDirectoryError, match=r"1 LoRA matrices are missing \(llama.layers.0.self_attn.q_proj.lora_B\)"
    ):
        merge_lora(base, copy, tmp_path / "merged")


@pytest.mark.slow
def test_real_model(smollm2: Path, tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora", smollm2, "embedded:smollm2", size=0.01)
    report = merge_lora(None, lora, tmp_path / "merged")
    assert report.base_check == "matches" and report.updated == 210
    assert report.comparison.max_abs_diff < 1e-3 < 0.1 < report.effect
    assert report.comparison.same_top == 1.0
