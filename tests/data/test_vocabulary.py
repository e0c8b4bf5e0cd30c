"""A tokenizer and the embedding that its ids are rows of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.config import load_run_config
from paddlesft.data.encoding import TextEncoder
from paddlesft.data.vocabulary import check_vocabulary
from paddlesft.errors import ModelDirectoryError
from paddlesft.inference.loading import load_for_inference
from paddlesft.models.tokenizers import load_tokenizer
from paddlesft.training.events import Observer
from paddlesft.training.run_inputs import read_inputs
from tests.tiny_families import FAMILY_FIXTURES


@pytest.fixture
def padded(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer got a padding token that its embedding has no row for, as many published ones have."""
    directory = tmp_path / "padded"
    shutil.copytree(tiny_llama, directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "[PAD]"}))
    return directory


@pytest.mark.parametrize("family", FAMILY_FIXTURES)
def test_every_id_of_a_familys_own_tokenizer_fits_and_one_row_less_is_refused(
    family: str, tiny_family: Callable[[str], Path]
) -> None:
    tokenizer = load_tokenizer(tiny_family(family))
    encoder = TextEncoder(tokenizer)
    check_vocabulary(encoder, len(tokenizer), "T", "M")  # the fixtures have no gaps between their ids
    with pytest.raises(ModelDirectoryError, match=rf"in T has ids up to {len(tokenizer) - 1} \("):
        check_vocabulary(encoder, len(tokenizer) - 1, "T", "M")


def test_inference_refuses_ids_without_a_row(padded: Path, tiny_llama: Path) -> None:
    rows = len(load_tokenizer(tiny_llama))
    with pytest.raises(ModelDirectoryError) as caught:
        load_for_inference(padded)
    message = str(caught.value)
    assert message.startswith(f"The tokenizer in {padded} has ids up to {rows} ('[PAD]'), but the model in {padded} ")
    assert f"knows {rows} tokens: ids 0 to {rows - 1}. Use the tokenizer that this model was made with" in message


def test_a_run_refuses_ids_without_a_row_before_it_reads_data(padded: Path, tiny_llama: Path, tmp_path: Path) -> None:
    places = ["train_dataset_path=nowhere.json", f"output_dir={tmp_path / 'run'}", "do_train=true"]
    for keys in (
        [f"model_name_or_path={padded}"],
        [f"model_name_or_path={tiny_llama}", f"tokenizer_name_or_path={padded}"],
    ):
        with pytest.raises(ModelDirectoryError, match=rf"tokenizer in {padded} has ids up to \d+ \('\[PAD\]'\)"):
            read_inputs(load_run_config(None, [*places, *keys]), Observer())
