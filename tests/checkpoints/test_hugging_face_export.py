"""Directories for transformers: prompts, generation settings, types, and adapters merged on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.checkpoints.hugging_face_export import export_hugging_face
from paddlesft.checkpoints.verify import logits_of
from paddlesft.errors import CheckpointError
from paddlesft.inference.loading import load_for_inference
from paddlesft.models import load_model, read_provenance
from paddlesft.models.provenance import write_provenance
from paddlesft.models.stored import stored_weights
from paddlesft.tuning.lora import load_lora
from tests.checkpoints.adapters import write_adapter
from tests.tiny_quantized import write_quantized

PROMPTS = [[3, 5, 7, 11, 13, 17]]
CONVERSATIONS = [
    [{"role": "user", "content": "Which  way\nis up?"}],
    [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": " And 2 + 2?"},
    ],
]


def copied(model: Path, target: Path, template: str | None, begins: bool = False, **facts: Any) -> Path:
    """Copy a model whose runs used a template; ``begins``: its tokenizer puts a token before every text."""
    shutil.copytree(model, target)
    write_provenance(target, kind="model", **({"chat_template": template} if template else {}), **facts)
    if begins:
        path = target / "tokenizer_config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(content | {"add_bos_token": True}), encoding="utf-8")
    return target


def test_transformers_makes_the_prompts_that_the_model_was_trained_with(
    oracle: Callable[..., dict], tiny_llama: Path, tmp_path: Path
) -> None:
    cases = {"own": (None,), "alpaca": ("alpaca",), "begun": ("alpaca", True), "llama2": ("llama2",)}
    wanted, made = {}, []
    for name, template in cases.items():
        source = copied(tiny_llama, tmp_path / "ours" / name, *template)
        done = export_hugging_face(source, tmp_path / "hf" / name)
        assert done.notes == []
        renderer = load_for_inference(source).renderer
        wanted[name] = [renderer.render_prompt(messages) for messages in CONVERSATIONS]
        made.append(done.output)
        again = load_for_inference(done.output).renderer  # and read here once more
        assert [again.render_prompt(messages) for messages in CONVERSATIONS] == wanted[name]
    assert wanted["begun"][0][1:] == wanted["alpaca"][0] != wanted["own"][0]
    (tmp_path / "conversations.json").write_text(json.dumps(CONVERSATIONS), encoding="utf-8")
    assert oracle("chat_templates.py", tmp_path / "conversations.json", *made) == wanted


def test_what_transformers_templates_cannot_say_is_said(tiny_llama: Path, tmp_path: Path) -> None:
    source = copied(tiny_llama, tmp_path / "plain", "plain", system_prompt="Be kind.")
    first, second = export_hugging_face(source, tmp_path / "hf").notes
    assert first == "Its system prompt is no part of the template; send it as the first message: Be kind."
    assert second.startswith("From the second question on its prompts have other ids there")
    source = copied(tiny_llama, tmp_path / "paddle", None)
    query = {"system": "", "conversation": ["Q: {{user}}", "A: {{bot}}"], "query": "Q: {{query}}"}
    (source / "chat_template.json").write_text(json.dumps(query), encoding="utf-8")
    (note,) = export_hugging_face(source, tmp_path / "hf-paddle").notes
    assert "PaddleNLP's chat_template.json, which transformers does not read" in note


def test_generation_settings_and_the_asked_type(tiny_llama: Path, tmp_path: Path) -> None:
    source = copied(tiny_llama, tmp_path / "ours", None)
    own = {"eos_token_id": [2, 0], "temperature": 0.6, "top_p": 0.9, "decode_strategy": "sampling", "top_k": None}
    (source / "generation_config.json").write_text(json.dumps(own), encoding="utf-8")
    out = export_hugging_face(source, tmp_path / "hf", dtype="bfloat16").output
    found = json.loads((out / "generation_config.json").read_text(encoding="utf-8"))
    assert found.pop("bos_token_id") is not None and found.pop("pad_token_id", 0) is not None
    assert found == {"eos_token_id": [2, 0], "temperature": 0.6, "top_p": 0.9, "do_sample": True}
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["torch_dtype"] == "bfloat16"
    assert read_provenance(out)["dtype"] == "bfloat16"
    before, after = (
        stored_weights(source)["llama.embed_tokens.weight"],
        stored_weights(out)["model.embed_tokens.weight"],
    )
    assert (before.dtype, after.dtype) == ("F32", "BF16")
    np.testing.assert_array_equal(after.make(), before.make().astype(after.make().dtype))


def test_an_adapter_is_merged_on_the_way(run_here: Callable, tiny_llama: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", tiny_llama, str(tiny_llama))
    named = ("--lora_path", adapter, "--output_path", tmp_path / "hf")
    done = run_here("export", "--format", "hf", *named)
    assert done.returncode == 0, done.stderr
    assert f"merged with {adapter} (" in done.stdout and "  proof       " in done.stdout
    model = load_lora(load_model(tiny_llama), adapter)
    model.eval()
    wanted, plain = logits_of(model, PROMPTS)[0], logits_of(load_model(tiny_llama), PROMPTS)[0]
    found = logits_of(load_model(tmp_path / "hf"), PROMPTS)[0]
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max() < np.abs(plain - wanted).max()
    assert read_provenance(tmp_path / "hf")["source"]["name"] == str(adapter.resolve())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "lora"]  # nothing is left of the merge

    int4 = write_quantized(tmp_path / "int4", tiny_llama, "int4")
    with pytest.raises(CheckpointError, match=r"transformers gets floats; .*\n.*--base_precision dequantized\n"):
        export_hugging_face(int4, tmp_path / "no", adapter)
    done = run_here(
        "export", "--format", "hf", "--prefix_path", adapter, "--model_name_or_path", tiny_llama,
        "--output_path", tmp_path / "no",
    )  # fmt: skip
    assert done.returncode == 2 and "a Prefix-Tuning adapter cannot be merged into them" in done.stderr
    assert not (tmp_path / "no").exists()
