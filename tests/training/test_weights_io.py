from pathlib import Path

import paddle
import pytest

from paddlesft.errors import CheckpointError
from paddlesft.models import fingerprint, load_tokenizer, read_provenance
from paddlesft.models.load import load_model
from paddlesft.training.weights_io import TextSide, load_weights, save_weights
from paddlesft.tuning.prepare import prepare_for_tuning
from tests.training.small_runs import small_config, small_model


@pytest.mark.parametrize("keys", [["lora=true"], ["prefix_tuning=true", "num_prefix_tokens=4"], []])
def test_weights_come_back_into_a_model_of_the_same_kind(keys: list[str], tiny_llama: Path, tmp_path: Path) -> None:
    def model(seed: int):
        return prepare_for_tuning(load_model(tiny_llama), small_config(*keys, f"seed={seed}"))

    first, second = model(1), model(2)
    for parameter in first.parameters():
        if not parameter.stop_gradient:
            parameter.set_value(paddle.randn(parameter.shape))
    save_weights(first, TextSide(tiny_llama), tmp_path, {"seed": 1})
    facts = read_provenance(tmp_path)
    assert facts["fingerprint"] == fingerprint(tmp_path) and facts["seed"] == 1
    assert facts["kind"] == ("adapter" if keys else "model")
    assert (tmp_path / "tokenizer.json").is_file() is not bool(keys)  # an adapter uses its base's
    load_weights(second, tmp_path)
    for a, b in zip(first.parameters(), second.parameters()):
        assert (a.numpy() == b.numpy()).all()
    other = prepare_for_tuning(small_model(), small_config(*keys))
    with pytest.raises(CheckpointError, match="does not fit the model being trained"):
        load_weights(other, tmp_path)


def test_a_tied_head_is_stored_once_and_comes_back(tmp_path: Path) -> None:
    model = small_model(tie_word_embeddings=True)
    model.save_pretrained(str(tmp_path), safe_serialization=True)
    other = small_model(seed=8, tie_word_embeddings=True)
    load_weights(other, tmp_path)
    assert (other.llama.embed_tokens.weight.numpy() == model.llama.embed_tokens.weight.numpy()).all()
    assert (other.lm_head.weight.numpy() == model.llama.embed_tokens.weight.numpy()).all()


def test_a_template_given_as_a_file_travels_with_the_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    out = tmp_path / "out"
    out.mkdir()
    model = prepare_for_tuning(load_model(tiny_llama), small_config("lora=true"))
    save_weights(model, TextSide(tiny_llama, template_file=template), out, {})
    assert (out / "chat_template.jinja").read_text() == template.read_text()
    assert load_tokenizer(out).vocab_size == load_tokenizer(tiny_llama).vocab_size


def test_empty_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no model weights"):
        load_weights(small_model(), tmp_path)
    prefix = prepare_for_tuning(small_model(), small_config("prefix_tuning=true", "num_prefix_tokens=4"))
    with pytest.raises(CheckpointError, match="holds no prefix weights"):
        load_weights(prefix, tmp_path)
