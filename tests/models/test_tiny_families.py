"""The tiny models that tests of breadth stand on: one for each row of the family table, complete and not trivial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paddlesft.models import family_of, load_config, load_model, load_tokenizer
from paddlesft.models.families import FAMILIES
from tests.tiny_families import CONTEXT, FAMILY_FIXTURES, HEADS, LAYERS, write_tiny_family


def test_every_family_of_the_table_has_a_fixture() -> None:
    assert set(FAMILY_FIXTURES) == {family.name for family in FAMILIES}


@pytest.mark.parametrize("name", FAMILY_FIXTURES)
def test_a_tiny_model_loads_as_its_family(name: str, tiny_family: Callable[[str], Path]) -> None:
    directory = tiny_family(name)
    config, tokenizer = load_config(directory), load_tokenizer(directory)
    family = family_of(config)
    assert family.name == name
    assert (type(config).__name__, FAMILY_FIXTURES[name].model) == (family.config_class, family.causal_lm)
    assert config.vocab_size == len(tokenizer)
    assert (family.num_layers(config), family.num_heads(config)) == (LAYERS, HEADS)
    assert family.context_length(config) in (CONTEXT, None)
    assert config.pad_token_id == tokenizer.pad_token_id
    model = load_model(directory)
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    assert all(np.isfinite(value).all() for value in weights.values())
    assert all(value.std() > 0.05 for value in weights.values() if value.ndim > 1)


def test_the_seed_makes_the_weights(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> np.ndarray:
        model = load_model(write_tiny_family("llama", tmp_path / name, seed=seed, num_hidden_layers=1))
        return model.llama.layers[0].self_attn.q_proj.weight.numpy()

    first = weights("a", 7)
    assert (first == weights("b", 7)).all()
    assert (first != weights("c", 8)).all()
