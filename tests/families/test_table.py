"""A family is one row and one tiny model: each row names what there is, and its claims fit the model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import paddlenlp.transformers as zoo
import pytest
from paddlenlp.transformers.model_utils import PretrainedModel

from paddlesft.models.decoders import CausalDecoder, decoder_of
from paddlesft.models.families import FAMILIES, family_named, family_of, known_model_types
from paddlesft.models.family import Family, imported
from paddlesft.models.load import load_model
from paddlesft.tuning.lora_targets import linear_names
from tests.tiny_families import FAMILY_FIXTURES

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def test_names_and_model_types_are_told_apart() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert [family_named(family.name) for family in FAMILIES] == list(FAMILIES)
    for kind in known_model_types():  # rows that share one are told apart by another entry of config.json
        marks = [family.config_mark for family in FAMILIES if kind in family.model_types]
        assert len(set(marks)) == len(marks)
        for family in (family for family in FAMILIES if kind in family.model_types):
            mark = {family.config_mark: 1} if family.config_mark else {}
            assert family_of({"model_type": kind, **mark}) == family


def test_every_family_has_a_tiny_model_and_no_tiny_model_is_left_over() -> None:
    assert set(FAMILY_FIXTURES) == {family.name for family in FAMILIES}


@every_family
def test_what_a_row_names_exists(family: Family) -> None:
    causal_lm, config = getattr(zoo, family.causal_lm), getattr(zoo, family.config_class)
    assert issubclass(causal_lm, PretrainedModel) and causal_lm.base_model_prefix == family.base_prefix
    assert config.model_type in family.model_types
    assert family.pipe_class is None or hasattr(zoo, family.pipe_class)
    assert issubclass(family.decoder_class(), CausalDecoder)
    paths = [*family.fixes, *family.config_fixes, family.prefix_postprocess, family.hf_layout, family.tie_head]
    assert all(callable(imported(path)) or path == family.hf_layout for path in paths if path)
    for fix in (*family.fixes, *family.config_fixes):  # and each has a test that says when upstream has mended it
        module = fix.partition(":")[0].rpartition(".")[2]
        assert any(module in path.stem for path in (Path(__file__).parents[1] / "quirks").glob("test_*.py")), fix


@every_family
def test_a_row_reads_the_sizes_of_its_tiny_model(family: Family, tiny_family: Callable[[str], Path]) -> None:
    model = load_model(tiny_family(family.name))
    assert family_of(model.config) == family
    assert (family.num_layers(model.config), family.num_heads(model.config)) == (2, 4)
    assert family.context_length(model.config) in (512, None) and family.head_dim(model.config) in (16, 32)
    decoder = decoder_of(model)
    assert type(decoder) is family.decoder_class() and decoder.lm is model


@every_family
def test_lora_targets_are_every_linear_of_the_decoder_and_not_the_head(
    family: Family, tiny_family: Callable[[str], Path]
) -> None:
    model = load_model(tiny_family(family.name))
    sizes = {name: layer.weight.shape for name, layer in model.named_sublayers() if name in linear_names(model)}
    wanted = {name for name in sizes if model.config.vocab_size not in sizes[name]}
    targets = [p for p in family.lora_target_modules if any(re.fullmatch(p, name) for name in sizes)]
    assert {name for name in sizes if any(re.fullmatch(p, name) for p in targets)} == wanted
    assert len(wanted) >= 8 and all(name.startswith(f"{family.base_prefix}.") for name in wanted)


def test_the_fast_classes_are_for_llama_alone(tiny_family: Callable[[str], Path]) -> None:
    from paddlesft.models.fast import accelerate

    swapped = {family.name: accelerate(load_model(tiny_family(family.name))) for family in FAMILIES}
    assert [name for name, classes in swapped.items() if classes] == ["llama"]
