"""Which Linear layers of every family are quantized, by name; what cannot be is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import paddle
import pytest
from paddle import nn

from paddlesft.errors import UserError
from paddlesft.models.families import FAMILIES
from paddlesft.models.load import load_model
from paddlesft.quantization.chosen_linears import Sources, chosen_linears
from paddlesft.quantization.layer_walk import LayerWalk, decoder_layers
from paddlesft.quantization.quantize_model import quantize_model
from paddlesft.quantization.recipe import Recipe
from tests.quantization.test_layer_walk import batches

# One decoder layer of each family. A group shares an input; a star stands where that input is the output of a norm.
LLAMA = [
    "* self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "self_attn.o_proj",
    "* mlp.gate_proj mlp.up_proj",
    "mlp.down_proj",
]
GPT = [
    "* self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "self_attn.out_proj",
    "* linear1",
    "linear2",
]
BLOOM = ["* self_attention.query_key_value", "self_attention.dense", "* mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
CHATGLM = ["* attention.query_key_value", "attention.dense", "* mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
LINEARS = {
    **dict.fromkeys(("llama", "qwen2", "mistral", "gemma"), LLAMA),
    **dict.fromkeys(("gpt", "opt"), GPT),
    **dict.fromkeys(("bloom", "chatglm_v2"), BLOOM),
    **dict.fromkeys(("chatglm", "glm"), CHATGLM),
    "qwen": ["* attn.c_attn", "attn.c_proj", "* mlp.w1 mlp.w2", "mlp.c_proj"],
}


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_linears_of_every_family(family: str, tiny_family: Callable[[str], Path]) -> None:
    model = load_model(tiny_family(family))
    walk = LayerWalk(model, batches(model)[:1])
    groups = [(line.startswith("* "), line.removeprefix("* ").split()) for line in LINEARS[family]]
    for name, layer in walk.layers.items():
        chosen = chosen_linears(name, layer, Recipe("weight_only_int8"))
        assert {one.name for one in chosen} == {f"{name}.{part}" for _, parts in groups for part in parts}
        sources = Sources(walk, layer, chosen)
        assert sources.behind_norm == {f"{name}.{part}" for normed, parts in groups if normed for part in parts}
        found: dict[str, set[str]] = {}
        for one, first in sources.same_as.items():
            found.setdefault(first, set()).add(one.removeprefix(f"{name}."))
        assert sorted(map(sorted, found.values())) == sorted(sorted(parts) for _, parts in groups)


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_all_else_stays_as_it_is(family: str, tiny_family: Callable[[str], Path]) -> None:
    """Embeddings, tied or untied heads and norms keep their parameters."""
    model = load_model(tiny_family(family))
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    results = quantize_model(model, batches(model)[:1], Recipe("weight_only_int8"))
    parts = [part for line in LINEARS[family] for part in line.removeprefix("* ").split()]
    layers = list(decoder_layers(model))
    assert sorted(one.name for one in results) == sorted(f"{name}.{part}" for name in layers for part in parts)
    gone = before.keys() - {f"{one.name}.{kind}" for one in results for kind in ("weight", "bias")}
    after = {name: id(parameter) for name, parameter in model.named_parameters()}
    assert gone and all(after[name] == before[name] for name in gone)


class Conv1D(nn.Layer):
    """A product with a matrix that is no Linear, as GPT-2 has it elsewhere."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = self.create_parameter([inputs, outputs])

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(x, self.kernel)


class TransposedLinear(nn.Linear):
    """A Linear that computes something else."""


@pytest.mark.parametrize(
    ("made", "words"),
    [(Conv1D, r"Conv1D \(kernel \[64, 128\]\)"), (TransposedLinear, r"TransposedLinear \(weight \[64, 128\]\)")],
)
def test_matrix_that_is_no_linear_is_refused_by_name(made: type, words: str, tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    model.llama.layers[1].mlp.up_proj = made(64, 128)
    message = (
        rf"^llama\.layers\.1\.mlp\.up_proj is a {words}, which cannot be quantized: only Linear can\. Leave it as "
        r"it is with skip_list_names: \[\"\.\*up_proj\"\]"
    )
    with pytest.raises(UserError, match=message):
        quantize_model(model, batches(model), Recipe("weight_only_int8"))
    model = load_model(tiny_llama)
    model.llama.layers[1].mlp.up_proj = made(64, 128)
    results = quantize_model(model, batches(model), Recipe("weight_only_int8", skip=(".*up_proj",)))
    assert len(results) == 12 and type(model.llama.layers[1].mlp.up_proj) is made


def test_matrix_of_the_decoder_layer_itself_is_refused(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    layer = model.llama.layers[0]
    layer.mixing = layer.create_parameter([64, 64])
    with pytest.raises(
        UserError, match=r"^llama\.layers\.0 is a LlamaDecoderLayer \(mixing \[64, 64\]\), which cannot"
    ):
        quantize_model(model, batches(model), Recipe("weight_only_int8"))


def test_embedding_inside_a_decoder_layer_has_nothing_to_quantize(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    model.llama.layers[0].positions = nn.Embedding(8, 4)
    assert len(quantize_model(model, batches(model), Recipe("weight_only_int8"))) == 14


def test_quantized_layers_are_refused(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    quantize_model(model, batches(model), Recipe("weight_only_int4"))
    with pytest.raises(UserError, match=r"^llama\.layers\.0\.self_attn\.q_proj is quantized already \(int4\)\. Give"):
        quantize_model(model, batches(model), Recipe("weight_only_int8"))


def test_linear_that_is_never_called_is_refused(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    model.llama.layers[0].spare = nn.Linear(4, 4)
    with pytest.raises(UserError, match=r"^llama\.layers\.0\.spare was not called when the model computed"):
        quantize_model(model, batches(model), Recipe("weight_only_int8"))
