"""LoRA adapters go to PEFT and come from PEFT with the same logits; what LoRA here does not know is refused by name."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file

from paddlesft.checkpoints.adapter import read_adapter
from paddlesft.checkpoints.hugging_face_export import export_hugging_face
from paddlesft.checkpoints.merge_lora import merge_lora
from paddlesft.checkpoints.peft_adapters import export_peft, import_peft
from paddlesft.errors import CheckpointError, ModelDirectoryError, UserError
from paddlesft.inference.adapter_base import base_of
from paddlesft.inference.loading import load_for_inference
from paddlesft.models import load_model, read_provenance, write_hugging_face
from paddlesft.models.decoders import decoder_of
from paddlesft.tuning.lora import load_lora
from tests.tiny_quantized import write_quantized

ALL = "all-linear"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "llama patterns": (
        "llama",
        {"r": 4, "lora_alpha": 8, "target_modules": ALL, "rank_pattern": {"q_proj": 6, "layers.0.mlp.up_proj": 2},
         "alpha_pattern": {"q_proj": 3}},
    ),
    "llama rslora": ("llama", {"r": 3, "lora_alpha": 5, "target_modules": ALL, "use_rslora": True}),
    "qwen2": ("qwen2", {"r": 4, "lora_alpha": 4, "target_modules": ALL}),
    "mistral": ("mistral", {"r": 4, "lora_alpha": 16, "target_modules": ["model.layers.1.self_attn.k_proj"]}),
    "gemma": ("gemma", {"r": 4, "lora_alpha": 8, "target_modules": ALL}),
    "bloom": ("bloom", {"r": 4, "lora_alpha": 8, "target_modules": ["query_key_value", "dense_h_to_4h"]}),
    "gpt2": (
        "gpt", {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_fc", "mlp.c_proj"], "fan_in_fan_out": True},
    ),
    "opt": ("opt", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "out_proj", "fc1", "fc2"]}),
}  # fmt: skip
IDS = np.random.default_rng(0).integers(10, 200, [2, 12])
BOUND = 1e-5  # of the largest logit
HEAD_SIZES = {"A": [4, 64], "B": [256, 4]}


class Made:
    """PEFT's adapters with their logits, ours made of them, PEFT's made of those with their logits."""

    def __init__(self, oracle: Callable[..., Any], tiny_family: Callable[[str], Path], out: Path) -> None:
        self.out, self.bases = out, {family: tiny_family(family) for family, _ in CASES.values()}
        for part in ("made", "ours", "back", "hf"):
            (out / part).mkdir()
        for family, base in self.bases.items():
            write_hugging_face(base, out / "hf" / family)
        cases = [
            {"name": name, "base": str(out / "hf" / family), "ids": IDS.tolist(), "config": config,
             "adapter": str(out / "back" / name)}
            for name, (family, config) in CASES.items()
        ]  # fmt: skip
        (out / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
        oracle("peft_adapters.py", "make", out / "made", out / "cases.json")
        self.notes = {}
        for name, (family, _) in CASES.items():
            import_peft(out / "made" / name, out / "ours" / name, str(self.bases[family]))
            self.notes[name] = export_peft(out / "ours" / name, out / "back" / name)
        oracle("peft_adapters.py", "logits", out / "back", out / "cases.json")

    def ours(self, name: str) -> np.ndarray:
        """Logits [b, s, v] of our adapter."""
        model = load_lora(load_model(self.bases[CASES[name][0]]), self.out / "ours" / name)
        model.eval()
        decoder = decoder_of(model)
        with paddle.no_grad():
            return decoder.logits(decoder.run(paddle.to_tensor(IDS))[0]).numpy()


@pytest.fixture(scope="module")
def made(
    oracle: Callable[..., Any], tiny_family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Made:
    return Made(oracle, tiny_family, tmp_path_factory.mktemp("peft"))


@pytest.mark.parametrize("name", CASES)
def test_imported_adapters_give_pefts_logits(name: str, made: Made) -> None:
    wanted = np.load(made.out / "made" / f"{name}.npy")
    np.testing.assert_allclose(made.ours(name), wanted, rtol=0, atol=BOUND * np.abs(wanted).max())
    base = decoder_of(load_model(made.bases[CASES[name][0]]))
    with paddle.no_grad():  # the adapter is not without effect
        plain = base.logits(base.run(paddle.to_tensor(IDS))[0]).numpy()
    assert np.abs(plain - wanted).max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_exported_adapters_give_their_logits_in_peft(name: str, made: Made) -> None:
    wanted = np.load(made.out / "made" / f"{name}.npy")
    found = np.load(made.out / "back" / f"{name}.npy")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=BOUND * np.abs(wanted).max())
    assert made.notes[name] == [
        "It names no base, because ours is a directory: give PEFT the base that it was trained on."
    ]


def test_what_needs_no_change_comes_back_bit_by_bit(made: Made) -> None:
    for name in ("llama", "llama rslora", "qwen2", "bloom", "opt"):
        before, after = (load_file(made.out / part / name / "adapter_model.safetensors") for part in ("made", "back"))
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[key], after[key]) for key in before), name
    config = json.loads((made.out / "back" / "llama" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 8, {})


def test_one_fused_update_becomes_three_and_one_again(made: Made) -> None:
    ours = read_adapter(made.out / "ours" / "gpt2")
    assert sum(name.endswith(("q_proj", "k_proj", "v_proj")) for name in ours.updated) == 6
    config = json.loads((made.out / "back" / "gpt2" / "adapter_config.json").read_text(encoding="utf-8"))
    assert set(config["rank_pattern"].values()) == {12} and set(config["alpha_pattern"].values()) == {24.0}
    assert config["fan_in_fan_out"] is True
    other = read_adapter(made.out / "ours" / "llama rslora")
    assert other.scaling == 5 / math.sqrt(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, r"peft_type is IA3; LORA can be imported"),
        ({"use_dora": True, "bias": "all"}, r"holds DoRA's magnitudes; trained biases, which LoRA here does not know"),
        ({"init_lora_weights": "pissa_niter_4"}, r"pissa_niter_4, which has changed the base weights too"),
        ({"use_qalora": True, "arrow_config": {"top_k": 1}}, r"holds QA-LoRA's grouped inputs; Arrow's mixture of ada"),
        ({"use_tomorrow": True}, r"holds use_tomorrow: true \(a key that is not known here\), which LoRA here"),
        ({"r": "8"}, r"r is '8' and lora_alpha 8; r is a number above 0"),
        ({"base_model_name_or_path": None}, r"names no base\. Give the model it was trained on: --model_name_or_path"),
    ],
)
def test_other_kinds_of_adapters_are_refused(changes: dict[str, Any], message: str, made: Made, tmp_path: Path) -> None:
    source = shutil.copytree(made.out / "made" / "llama", tmp_path / "peft")
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    (source / "adapter_config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    base = None if "base_model_name_or_path" in changes else str(made.bases["llama"])
    with pytest.raises((CheckpointError, ModelDirectoryError), match=message):
        import_peft(source, tmp_path / "out", base)
    assert not (tmp_path / "out").exists()


def test_other_weights_and_bases_are_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"no PEFT adapter: it has no adapter_config\.json\. Found: "):
        import_peft(made.bases["llama"], tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"updates 6 layers that can have none here \(first: transformer\.h\.0"):
        import_peft(made.out / "made" / "gpt2", tmp_path / "out", str(made.bases["llama"]))
    source = shutil.copytree(made.out / "made" / "llama", tmp_path / "peft")
    tensors = load_file(source / "adapter_model.safetensors")
    name = next(name for name in tensors if "q_proj.lora_B" in name)
    save_file({**tensors, name: tensors[name][:-1].copy()}, source / "adapter_model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"was not trained on this base: 1 layers have other sizes .*q_proj is for"
    ):
        import_peft(source, tmp_path / "out", str(made.bases["llama"]))
    head = {f"base_model.model.lm_head.lora_{part}.weight": np.zeros(size, "f4") for part, size in HEAD_SIZES.items()}
    save_file({**tensors, **head}, source / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"updates 1 layers that can have none here \(first: lm_head\): only the"):
        import_peft(source, tmp_path / "out", str(made.bases["llama"]))
    save_file(
        {**tensors, "base_model.model.lm_head.weight": np.zeros([2, 2], "f4")}, source / "adapter_model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"1 tensors that are no low-rank update of a layer \(first: base_model"):
        import_peft(source, tmp_path / "out", str(made.bases["llama"]))
    (source / "adapter_model.safetensors").rename(source / "adapter_model.bin")
    with pytest.raises(ModelDirectoryError, match=r"adapter_model\.bin is a pickle of torch, which is not read here"):
        import_peft(source, tmp_path / "out", str(made.bases["llama"]))


def test_an_import_says_what_it_was_told_and_no_more(made: Made, tmp_path: Path) -> None:
    """PEFT names its base and not its weights: nothing has compared them, so nothing may say that they match."""
    ours, base = made.out / "ours" / "llama", made.bases["llama"]
    facts = read_provenance(ours)
    assert facts["kind"] == "adapter" and facts["base"] == {"name": str(base), "path": str(base.resolve())}
    assert base_of(ours) == base
    report = merge_lora(None, ours, tmp_path / "merged")
    assert (report.base_check, report.base) == ("unknown", base)
    assert any("has no fingerprint of its base" in notice for notice in report.notices)
    assert load_for_inference(None, ours).directory == base


def test_the_base_may_be_a_quantized_directory(made: Made, tmp_path: Path) -> None:
    quantized = write_quantized(tmp_path / "int4", made.bases["llama"], "int4")
    import_peft(made.out / "made" / "llama", tmp_path / "ours", str(quantized))
    wanted, found = read_adapter(made.out / "ours" / "llama"), read_adapter(tmp_path / "ours")
    assert found.updated == wanted.updated and found.base["path"] == str(quantized)
    loaded = load_for_inference(None, tmp_path / "ours")
    assert loaded.base.formats.startswith("int4")


def test_weights_trained_as_a_whole_are_not_written(made: Made, tmp_path: Path) -> None:
    ours = shutil.copytree(made.out / "ours" / "llama", tmp_path / "ours")
    tensors = load_file(ours / "lora_model_state.safetensors")
    save_file({**tensors, "llama.norm.weight": np.ones(4, "f4")}, ours / "lora_model_state.safetensors")
    with pytest.raises(CheckpointError, match=r"has trained 1 weights as a whole \(first: llama\.norm\.weight\)"):
        export_peft(ours, tmp_path / "out")


def test_inputs_are_not_replaced(made: Made) -> None:
    theirs, ours, base = made.out / "made" / "llama", made.out / "ours" / "llama", str(made.bases["llama"])
    for write, source in ((import_peft, theirs), (export_peft, ours)):
        for output in (source, Path(base)):
            with pytest.raises(UserError, match=f"{output}: it is the directory that is read"):
                write(source, output, base, overwrite=True)
    with pytest.raises(UserError, match=f"{base}: it is the directory that is read"):
        write_hugging_face(base, base, overwrite=True)
    with pytest.raises(UserError, match=f"{ours}: it is the directory that is read"):
        export_hugging_face(base, ours, ours, overwrite=True)


def test_the_verbs(made: Made, run_here: Callable, tmp_path: Path) -> None:
    done = run_here(
        "import-peft", made.out / "made" / "qwen2", tmp_path / "ours", "--model_name_or_path", made.bases["qwen2"]
    )
    assert done.returncode == 0, done.stderr
    assert "Imported 14 updates of rank 4 from" in done.stdout
    done = run_here("export", "--format", "peft", "--lora_path", tmp_path / "ours", "--output_path", tmp_path / "back")
    assert done.returncode == 0, done.stderr
    assert "peft.PeftModel.from_pretrained" in done.stdout
    done = run_here(
        "export", "--format", "peft", "--model_name_or_path", made.bases["qwen2"], "--output_path", tmp_path
    )
    assert done.returncode == 2 and "name its directory with --lora_path" in done.stderr
    done = run_here("merge-lora", "--lora_path", made.out / "made" / "qwen2", "--merge_model_path", tmp_path / "merged")
    assert done.returncode == 2 and "paddlesft import-peft" in done.stderr
