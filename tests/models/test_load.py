"""Model directories load completely or not at all, and are written completely."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.models import (
    family_of,
    fingerprint,
    load_config,
    load_model,
    load_tokenizer,
    read_provenance,
    save_model_directory,
    write_provenance,
)
from paddlesft.models.provenance import base_facts
from paddlesft.models.stored import stored_weights
from paddlesft.models.weights import PADDLE_LAYOUT, NewTensor, read_weights, write_weights
from tests.models.test_against_torch import paddle_logits
from tests.tiny_models import write_tiny_llama


def test_saved_directory_is_the_same_model(tiny_llama: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny_llama), load_tokenizer(tiny_llama)
    out = tmp_path / "out"
    out.mkdir()
    save_model_directory(model, tokenizer, out, source={"name": "test"})
    np.testing.assert_array_equal(paddle_logits(load_model(out), [[5, 6, 7]])[0], paddle_logits(model, [[5, 6, 7]])[0])
    text = "<|im_start|>user\nHi 42<|im_end|>"
    assert load_tokenizer(out)(text)["input_ids"] == tokenizer(text)["input_ids"]
    facts = read_provenance(out)
    assert (facts["kind"], facts["dtype"], facts["source"]) == ("model", "float32", {"name": "test"})
    assert facts["fingerprint"] == fingerprint(out) == fingerprint(tiny_llama)
    assert facts["versions"]["paddlenlp"]


def test_a_config_written_by_several_processes_loads_in_one(tiny_llama: Path, tmp_path: Path) -> None:
    directory = tmp_path / "parallel"
    shutil.copytree(tiny_llama, directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config |= {"tensor_parallel_degree": 2, "tensor_parallel_rank": 1, "sequence_parallel": True}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model, whole = load_model(directory), load_model(tiny_llama)
    assert (model.config.tensor_parallel_degree, model.config.sequence_parallel) == (1, False)
    np.testing.assert_array_equal(paddle_logits(model, [[5, 6, 7]])[0], paddle_logits(whole, [[5, 6, 7]])[0])


def test_tied_head_is_saved_once(smollm2: Path, tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "tied", smollm2, tie_word_embeddings=True)
    (tmp_path / "out").mkdir()
    model = load_model(source)
    save_model_directory(model, source, tmp_path / "out")
    assert set(stored_weights(source)) - set(stored_weights(tmp_path / "out")) == {"lm_head.weight"}
    np.testing.assert_array_equal(
        paddle_logits(load_model(tmp_path / "out"), [[5, 6]])[0], paddle_logits(model, [[5, 6]])[0]
    )


PEAK = """
import sys
import paddlenlp.transformers
from paddlesft.models import load_model
def most():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
before = most()
model = load_model(sys.argv[1])
peak = most()
weights = sum({id(p): p.size * 4 for p in model.parameters()}.values())
print((peak - before) * 1024 / weights)
"""


def test_weights_are_in_memory_once_while_they_are_loaded(smollm2: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PEAK, str(smollm2)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0.9 < float(done.stdout) < 1.5, "times the weights; PaddleNLP's from_pretrained: more than 2"


def test_training_and_evaluation_mode(tiny_llama: Path) -> None:
    assert not load_model(tiny_llama).training
    assert load_model(tiny_llama, for_training=True).training


def test_pdparams(tiny_llama: Path, tmp_path: Path) -> None:
    import paddle

    model = load_model(tiny_llama)
    out = tmp_path / "pd"
    out.mkdir()
    paddle.save(model.state_dict(), str(out / "model_state.pdparams"))
    shutil.copyfile(tiny_llama / "config.json", out / "config.json")
    np.testing.assert_array_equal(paddle_logits(load_model(out), [[5, 6]])[0], paddle_logits(model, [[5, 6]])[0])
    by_name = stored_weights(out)
    assert by_name["llama.norm.weight"].dtype == "F32"
    assert set(by_name) == set(stored_weights(tiny_llama))
    (out / "model_state.pdparams").write_bytes(b"garbage")
    with pytest.raises(ModelDirectoryError, match=r"model_state.pdparams is damaged or incomplete .* Copy it again"):
        stored_weights(out)


def test_missing_weights_are_refused_instead_of_random(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "holes"
    out.mkdir()
    shutil.copyfile(tiny_llama / "config.json", out / "config.json")
    tensors = stored_weights(tiny_llama)
    del tensors["llama.layers.1.mlp.up_proj.weight"]
    write_weights(out, tensors, PADDLE_LAYOUT)
    with pytest.raises(ModelDirectoryError, match=r"lacks 1 of \d+ weights .*: llama.layers.1.mlp.up_proj.weight"):
        load_model(out)


def test_errors_name_what_was_found(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match="is not a directory"):
        load_model(tmp_path / "absent")
    with pytest.raises(ModelDirectoryError, match=r"no model directory: it has no config.json. Found: nothing"):
        load_config(tmp_path)
    with pytest.raises(ModelDirectoryError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "lora_config.json").write_text("{}")
    with pytest.raises(ModelDirectoryError, match=r"is a LoRA adapter directory, not a model. Give it as lora_path"):
        load_config(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "llama"')
    with pytest.raises(ModelDirectoryError, match=r"config.json is not JSON"):
        load_config(broken)
    (broken / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelDirectoryError, match=r"holds no weights: expected model.safetensors"):
        load_model(broken)
    with pytest.raises(ModelDirectoryError, match=r"dtype 'int8' is not one of float32, bfloat16, float16"):
        load_model(tiny_llama, dtype="int8")


@pytest.mark.parametrize("value", ["64", 64.5, 0, True, [64]])
def test_a_size_that_is_no_number_is_named(value: object, tiny_llama: Path, tmp_path: Path) -> None:
    out = shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"hidden_size": value, "num_key_value_heads": None}))
    with pytest.raises(ModelDirectoryError, match=r"config\.json: hidden_size is .*; allowed: whole numbers above 0"):
        load_model(out)


def test_from_modelscope_does_not_switch_conversion_on(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(path.name for path in tiny_llama.iterdir())
    monkeypatch.setenv("from_modelscope", "False")
    load_model(tiny_llama)
    assert sorted(path.name for path in tiny_llama.iterdir()) == before


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "PreTrainedTokenizerFast", "LlamaTokenizer"])
def test_hugging_face_tokenizer_classes(name: str, smollm2: Path, tmp_path: Path) -> None:
    """The class names of published models are unknown to paddlenlp or differ there; tokenizer.json decides."""
    shutil.copyfile(smollm2 / "tokenizer.json", tmp_path / "tokenizer.json")
    config = json.loads((smollm2 / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": name}))
    (tmp_path / "chat_template.jinja").write_text(template)
    ours, original = load_tokenizer(tmp_path), load_tokenizer(smollm2)
    text = "<|im_start|>user\nprint(12345)  été<|im_end|>\n"
    assert ours(text)["input_ids"] == original(text)["input_ids"]
    assert set(ours(text)) == {"input_ids", "attention_mask"}
    assert (ours.eos_token_id, ours.pad_token_id, ours.padding_side) == (2, 2, "left")
    chat = [{"role": "user", "content": "Hi"}]
    assert ours.apply_chat_template(chat, tokenize=False) == original.apply_chat_template(chat, tokenize=False)


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}

    def write(name: str, content: dict[str, np.ndarray], shard: int = 10**9) -> str:
        (tmp_path / name).mkdir()
        tensors = {key: NewTensor("F32", value.shape, lambda v=value: v) for key, value in content.items()}
        write_weights(tmp_path / name, tensors, PADDLE_LAYOUT, max_shard_bytes=shard)
        return fingerprint(tmp_path / name)

    first = write("one", arrays)
    assert write("two files", arrays, shard=24) == first
    assert len(list((tmp_path / "two files").glob("*.safetensors"))) == 2
    assert write("other value", {**arrays, "b": np.zeros(4, np.float32)}) != first
    assert write("other name", {"a": arrays["a"], "c": arrays["b"]}) != first
    assert write("other shape", {**arrays, "a": arrays["a"].reshape(3, 2)}) != first
    read, _ = read_weights(tmp_path / "two files")
    np.testing.assert_array_equal(read["a"].load(), arrays["a"])
    facts = base_facts(tmp_path / "one", "embedded:test")
    assert facts == {"name": "embedded:test", "path": str((tmp_path / "one").resolve()), "fingerprint": first}


def test_provenance_errors(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) == {}
    write_provenance(tmp_path, kind="model")
    assert read_provenance(tmp_path)["kind"] == "model"
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "holds no JSON object"),
        ('{"format": 99}', "has format 99; this version knows up to 1. Update paddlesft"),
    ):
        (tmp_path / "paddlesft.json").write_text(text)
        with pytest.raises(ModelDirectoryError, match=message):
            read_provenance(tmp_path)


def test_families(tiny_llama: Path) -> None:
    config = load_config(tiny_llama)
    family = family_of(config)
    assert family is family_of({"model_type": "llama"})
    assert (family.num_layers(config), family.num_heads(config)) == (2, 4)
    assert (family.prefix_kv_heads(config), family.head_dim(config)) == (2, 16)
    assert callable(family.prefix_postprocess_function())
    with pytest.raises(ModelDirectoryError, match=r"config.json names model_type 'bert', .* Known: bloom, .*llama"):
        family_of({"model_type": "bert"})
    with pytest.raises(ModelDirectoryError, match=r"names no model_type"):
        family_of({})


def test_package_names() -> None:
    import paddlesft.models as room

    for name in room.__all__:
        assert getattr(room, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'resolv'"):
        room.resolv  # noqa: B018
