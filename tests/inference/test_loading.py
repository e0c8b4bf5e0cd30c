"""From directories to a model that can reply: the base an adapter names, and refusals of what does not fit."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.inference.generation import generate
from paddlesft.inference.loading import load_for_inference
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.models import fingerprint
from tests.inference.adapters import write_adapter
from tests.tiny_models import write_tiny_llama

GREEDY = SamplingOptions(max_new_tokens=6)


@pytest.fixture(scope="module")
def lora(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "lora", tiny_llama, "lora")


@pytest.fixture(scope="module")
def prefix(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "prefix", tiny_llama, "prefix")


def reply(loaded: object) -> list[int]:
    prompt = loaded.renderer.render_prompt([{"role": "user", "content": "Hi"}])
    return generate(loaded.model, [prompt], GREEDY, loaded.stop_token_ids, loaded.pad_token_id)[0].token_ids


def test_a_model_directory_brings_everything(tiny_llama: Path) -> None:
    loaded = load_for_inference(tiny_llama)
    assert loaded.directory == tiny_llama and loaded.adapter is None
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.stop_token_ids) == ["<|im_end|>"]
    assert loaded.renderer.template.name == "tokenizer"
    assert loaded.context_length == 512
    assert loaded.identity() == {"model": fingerprint(tiny_llama)}
    assert not loaded.model.training


def test_stop_tokens_of_the_generation_config_count(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    assert load_for_inference(tmp_path / "m").stop_token_ids == [2, 7]


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_an_adapter_finds_its_base(kind: str, tiny_llama: Path, lora: Path, prefix: Path) -> None:
    path = {"lora": lora, "prefix": prefix}[kind]
    named = load_for_inference(tiny_llama, **{f"{kind}_path": path})
    unnamed = load_for_inference(None, **{f"{kind}_path": path})
    direct = load_for_inference(path)
    assert unnamed.directory == direct.directory == tiny_llama.resolve()
    assert named.adapter_kind == direct.adapter_kind == kind
    assert reply(named) == reply(unnamed) == reply(direct) != reply(load_for_inference(tiny_llama))
    assert named.identity()["adapter"] == fingerprint(path)


def test_another_base_is_refused_by_its_weights(lora: Path, smollm2: Path, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other", smollm2, seed=8)
    with pytest.raises(ModelDirectoryError) as caught:
        load_for_inference(other, lora_path=lora)
    text = str(caught.value)
    assert f"{other} is not the model that {lora} was trained on" in text
    assert fingerprint(other) in text
    assert "leave --model_name_or_path out" in text


def test_a_base_that_moved_away_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(tiny_llama, gone)
    adapter = write_adapter(tmp_path / "lora", gone, "lora")
    shutil.rmtree(gone)
    with pytest.raises(ModelDirectoryError) as caught:
        load_for_inference(adapter)
    assert f"{adapter} was trained on {gone}, which cannot be found" in str(caught.value)
    assert "--model_name_or_path" in str(caught.value)
    assert load_for_inference(tiny_llama, lora_path=adapter).directory == tiny_llama


def test_an_adapter_of_another_tool_is_taken_with_a_warning(
    tiny_llama: Path, lora: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(lora, foreign)
    (foreign / "paddlesft.json").unlink()
    with pytest.raises(ModelDirectoryError, match="does not say which model it was trained on"):
        load_for_inference(foreign)
    with caplog.at_level(logging.WARNING, logger="paddlesft"):
        loaded = load_for_inference(tiny_llama, lora_path=foreign)
    assert f"{foreign} does not say which weights it was trained on" in caplog.text
    assert reply(loaded) == reply(load_for_inference(lora))


def test_template_and_system_message_of_the_training_are_used(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = write_adapter(
        tmp_path / "a", tiny_llama, "lora", chat_template="alpaca", system_prompt="Answer in verse."
    )
    loaded = load_for_inference(adapter)
    assert loaded.renderer.template.name == "alpaca"
    prompt = loaded.tokenizer.decode(loaded.renderer.render_prompt([{"role": "user", "content": "Hi"}]))
    assert "Answer in verse." in prompt
    other = load_for_inference(adapter, chat_template="chatml", system_prompt="Be brief.")
    prompt = other.tokenizer.decode(other.renderer.render_prompt([{"role": "user", "content": "Hi"}]))
    assert prompt.startswith("<|im_start|>system\nBe brief.")


def test_a_merged_model_is_asked_as_its_adapter_was(tiny_llama: Path, tmp_path: Path) -> None:
    from paddlesft.checkpoints.merge_lora import merge_lora

    adapter = write_adapter(tmp_path / "a", tiny_llama, "lora", chat_template="alpaca", system_prompt="In verse.")
    merge_lora(None, adapter, tmp_path / "merged")
    question = [{"role": "user", "content": "Hi"}]
    one, other = load_for_inference(adapter), load_for_inference(tmp_path / "merged")
    assert one.renderer.render_prompt(question) == other.renderer.render_prompt(question)
    assert one.stop_token_ids == other.stop_token_ids
    assert reply(one) == reply(other)


def test_an_adapter_of_a_hugging_face_directory_finds_it_again(tiny_llama: Path, tmp_path: Path) -> None:
    from paddlesft.models import resolve_model, write_hugging_face

    hf = write_hugging_face(tiny_llama, tmp_path / "hf")
    adapter = write_adapter(tmp_path / "a", resolve_model(hf), "lora")
    assert load_for_inference(hf, lora_path=adapter).directory == load_for_inference(adapter).directory


def test_a_template_file_beside_the_adapter_is_used(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", tiny_llama, "lora")
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
    source += "{% if add_generation_prompt %}[assistant]{% endif %}"
    (adapter / "chat_template.jinja").write_text(source)
    loaded = load_for_inference(adapter)
    prompt = loaded.renderer.render_prompt([{"role": "user", "content": "Hi"}])
    assert loaded.tokenizer.decode(prompt) == "[user]Hi<|im_end|>[assistant]"


def test_directories_of_the_wrong_kind_are_explained(
    tiny_llama: Path, lora: Path, prefix: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelDirectoryError, match="holds a prefix adapter: give it as prefix_path"):
        load_for_inference(tiny_llama, lora_path=prefix)
    with pytest.raises(ModelDirectoryError, match="holds a complete model: give it as model_name_or_path"):
        load_for_inference(tiny_llama, prefix_path=tiny_llama)
    with pytest.raises(ModelDirectoryError, match=r"has no lora_config.json; found there: nothing"):
        load_for_inference(tiny_llama, lora_path=tmp_path)
    with pytest.raises(ModelDirectoryError, match=r"is not a directory. Give the directory the training wrote"):
        load_for_inference(tiny_llama, lora_path=tmp_path / "none")
    with pytest.raises(ModelDirectoryError, match="a model runs with one adapter"):
        load_for_inference(tiny_llama, lora_path=lora, prefix_path=prefix)
    with pytest.raises(ModelDirectoryError, match=r"No model is named. Give --model_name_or_path"):
        load_for_inference(None)


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_damaged_adapter_weights_are_named(kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", tiny_llama, kind)
    file = adapter / f"{kind}_model_state.pdparams"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelDirectoryError, match=f"{file.name} is damaged or incomplete .* Copy it again"):
        load_for_inference(None, **{f"{kind}_path": adapter})


def test_a_damaged_generation_config_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text("{")
    with pytest.raises(ModelDirectoryError, match=r"generation_config\.json is not JSON"):
        load_for_inference(tmp_path / "model")
