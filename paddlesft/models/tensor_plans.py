"""Names and shapes of a model's weights from its config.json alone: no paddle, no memory, no weights.

One function per architecture; the family table names it (``tensor_plan``). The tests compare each with the
``state_dict`` of PaddleNLP's model, and the splits with PaddleNLP's own tensor-parallel mapping.

Legend: ``h`` hidden size, ``a`` query heads, ``k`` key/value heads, ``d`` head size, ``f`` width of the feed-forward
block, ``v`` vocabulary, ``t`` tensor-parallel degree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any


@dataclass(frozen=True)
class PlannedTensor:
    """One weight.

    Attributes:
        name: in ``state_dict``; ``{i}`` stands for the number of the layer.
        shape: as Paddle keeps it (a Linear's weight is [inputs, outputs]).
        split: axis that tensor parallelism divides; None: every process holds it whole.
    """

    name: str
    shape: tuple[int, ...]
    split: int | None = None

    @property
    def size(self) -> int:
        """Numbers in it."""
        return prod(self.shape)

    def local_size(self, t: int) -> int:
        """Numbers of it that one of ``t`` tensor-parallel processes holds."""
        if self.split is None or self.shape[self.split] % t:
            return self.size
        return self.size // t


@dataclass(frozen=True)
class TensorPlan:
    """All weights of one model, by where they stand, and the sizes that activations have.

    Attributes:
        hidden, heads, kv_heads, head_dim, ffn, vocab, layers: h, a, k, d, f, v and the number of decoder layers.
        gated: the feed-forward block multiplies two projections (SwiGLU, GeGLU).
        dropout: dropout is on while training, so that its masks are kept.
        embedding: weights in front of the first layer.
        layer: weights of one decoder layer.
        norm: weights behind the last layer.
        head: the output matrix; empty when it is the embedding.
        tied_name: second name of the embedding in ``state_dict`` where the head is the embedding; None without one.
        buffers: entries of ``state_dict`` that are computed, not trained.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    layers: int
    gated: bool
    dropout: bool
    embedding: tuple[PlannedTensor, ...]
    layer: tuple[PlannedTensor, ...]
    norm: tuple[PlannedTensor, ...]
    head: tuple[PlannedTensor, ...] = ()
    tied_name: str | None = None
    buffers: tuple[str, ...] = ()

    def tensors(self) -> Iterator[PlannedTensor]:
        """Yield every weight once, in the order of the forward pass."""
        yield from self.embedding
        for i in range(self.layers):
            for tensor in self.layer:
                yield PlannedTensor(tensor.name.format(i=i), tensor.shape, tensor.split)
        yield from self.norm
        yield from self.head

    @property
    def parameters(self) -> int:
        """Numbers in all weights; a shared matrix counts once."""
        outer = sum(tensor.size for tensor in (*self.embedding, *self.norm, *self.head))
        return outer + self.layers * sum(tensor.size for tensor in self.layer)

    @property
    def table(self) -> PlannedTensor:
        """The token embedding."""
        return self.embedding[0]

    @property
    def column_matrices(self) -> int:
        """Matrices of a layer whose outputs tensor parallelism divides (q, k, v, gate, up: five if none is fused)."""
        return sum(tensor.split == 1 and len(tensor.shape) == 2 for tensor in self.layer)

    @property
    def row_matrices(self) -> int:
        """Matrices of a layer whose inputs tensor parallelism divides (o, down: two)."""
        return sum(tensor.split == 0 and len(tensor.shape) == 2 for tensor in self.layer)


def column(name: str, inputs: int, outputs: int, bias: bool = False) -> tuple[PlannedTensor, ...]:
    """Return a Linear whose outputs tensor parallelism divides."""
    extra = (PlannedTensor(f"{name}.bias", (outputs,), 0),) if bias else ()
    return (PlannedTensor(f"{name}.weight", (inputs, outputs), 1), *extra)


def row(name: str, inputs: int, outputs: int, bias: bool = False) -> tuple[PlannedTensor, ...]:
    """Return a Linear whose inputs tensor parallelism divides."""
    extra = (PlannedTensor(f"{name}.bias", (outputs,)),) if bias else ()
    return (PlannedTensor(f"{name}.weight", (inputs, outputs), 0), *extra)


def norm(name: str, size: int, bias: bool = False) -> tuple[PlannedTensor, ...]:
    """Return an RMSNorm, or with ``bias`` a LayerNorm."""
    return tuple(PlannedTensor(f"{name}.{part}", (size,)) for part in ("weight", "bias")[: 1 + bias])


def _entry(config: Mapping[str, Any], default: Any, *names: str) -> Any:
    """Return the first entry that is there and not null; PaddleNLP's own default otherwise."""
    return next((config[name] for name in names if config.get(name) is not None), default)


def _drops(config: Mapping[str, Any], default: float, *names: str) -> bool:
    return any(_entry(config, default, name) > 0 for name in names)


def _gated_decoder(
    config: Mapping[str, Any], prefix: str, layers: int, heads: int, kv_heads: int, head_dim: int, h: int, f: int,
    v: int, tied: bool, qkv_bias: bool = False,
) -> TensorPlan:  # fmt: skip
    at = f"{prefix}.layers.{{i}}"
    layer = (
        *column(f"{at}.self_attn.q_proj", h, heads * head_dim, qkv_bias),
        *column(f"{at}.self_attn.k_proj", h, kv_heads * head_dim, qkv_bias),
        *column(f"{at}.self_attn.v_proj", h, kv_heads * head_dim, qkv_bias),
        *row(f"{at}.self_attn.o_proj", heads * head_dim, h),
        *column(f"{at}.mlp.gate_proj", h, f),
        *column(f"{at}.mlp.up_proj", h, f),
        *row(f"{at}.mlp.down_proj", f, h),
        *norm(f"{at}.input_layernorm", h),
        *norm(f"{at}.post_attention_layernorm", h),
    )
    return TensorPlan(
        hidden=h, heads=heads, kv_heads=kv_heads, head_dim=head_dim, ffn=f, vocab=v, layers=layers, gated=True,
        dropout=_drops(config, 0.0, "attention_dropout"),
        embedding=(PlannedTensor(f"{prefix}.embed_tokens.weight", (v, h), 0),),
        layer=layer,
        norm=norm(f"{prefix}.norm", h),
        head=() if tied else (PlannedTensor("lm_head.weight", (h, v), 1),),
        tied_name="lm_head.weight" if tied else None,
    )  # fmt: skip


def _llama_kind(
    config: Mapping[str, Any], prefix: str, *, h: int = 4096, f: int, layers: int = 32, heads: int = 32,
    kv_heads: int | None = None, v: int, tied: bool = False, head_dim: int | None = None, qkv_bias: bool = False,
) -> TensorPlan:  # fmt: skip
    h = _entry(config, h, "hidden_size", "n_embd")
    heads = _entry(config, heads, "num_attention_heads", "n_head")
    # a config that leaves the key/value heads out means: as many as query heads, unless the class has a default
    kv_heads = _entry(config, kv_heads or heads, "num_key_value_heads")
    return _gated_decoder(
        config, prefix, _entry(config, layers, "num_hidden_layers", "n_layer"), heads, kv_heads,
        _entry(config, head_dim, "head_dim") if head_dim else h // heads, h,
        _entry(config, f, "intermediate_size", "n_inner"), _entry(config, v, "vocab_size"),
        _entry(config, tied, "tie_word_embeddings"), qkv_bias,
    )  # fmt: skip


def llama(config: Mapping[str, Any]) -> TensorPlan:
    """LLaMA."""
    return _llama_kind(config, "llama", f=11008, v=32000)


def qwen2(config: Mapping[str, Any]) -> TensorPlan:
    """Qwen2: LLaMA with biases on q, k and v."""
    return _llama_kind(config, "qwen2", f=22016, v=151936, qkv_bias=True)


def mistral(config: Mapping[str, Any]) -> TensorPlan:
    """Mistral."""
    return _llama_kind(config, "mistral", f=14336, v=32000, kv_heads=8)


def gemma(config: Mapping[str, Any]) -> TensorPlan:
    """Gemma: heads of a size of their own, head tied to the embedding."""
    return _llama_kind(config, "gemma", h=3072, f=24576, layers=28, heads=16, v=256000, tied=True, head_dim=256)


def _glm_layer(at: str, attention: str, h: int, f: int) -> tuple[PlannedTensor, ...]:
    return (
        *norm(f"{at}.input_layernorm", h, True),
        *column(f"{at}.{attention}.query_key_value", h, 3 * h, True),
        *row(f"{at}.{attention}.dense", h, h, True),
        *norm(f"{at}.post_attention_layernorm", h, True),
        *column(f"{at}.mlp.dense_h_to_4h", h, f, True),
        *row(f"{at}.mlp.dense_4h_to_h", f, h, True),
    )


def bloom(config: Mapping[str, Any]) -> TensorPlan:
    """BLOOM: fused q, k, v; a norm behind the embedding; head tied."""
    h = _entry(config, 64, "hidden_size", "n_embed")
    heads = _entry(config, 8, "n_head", "num_attention_heads")
    v = _entry(config, 250880, "vocab_size")
    return TensorPlan(
        hidden=h, heads=heads, kv_heads=heads, head_dim=h // heads, ffn=4 * h, vocab=v,
        layers=_entry(config, 2, "n_layer", "num_hidden_layers"), gated=False,
        dropout=_drops(config, 0.0, "hidden_dropout", "attention_dropout"),
        embedding=(
            PlannedTensor("bloom.word_embeddings.weight", (v, h), 0),
            *norm("bloom.word_embeddings_layernorm", h, True),
        ),
        layer=_glm_layer("bloom.h.{i}", "self_attention", h, 4 * h),
        norm=norm("bloom.ln_f", h, True),
        tied_name="lm_head.decoder_weight",
    )  # fmt: skip


def _gpt_layer(at: str, h: int, f: int) -> tuple[PlannedTensor, ...]:
    return (
        *column(f"{at}.self_attn.q_proj", h, h, True),
        *column(f"{at}.self_attn.k_proj", h, h, True),
        *column(f"{at}.self_attn.v_proj", h, h, True),
        *row(f"{at}.self_attn.out_proj", h, h, True),
        *column(f"{at}.linear1", h, f, True),
        *row(f"{at}.linear2", f, h, True),
        *norm(f"{at}.norm1", h, True),
        *norm(f"{at}.norm2", h, True),
    )


def gpt(config: Mapping[str, Any]) -> TensorPlan:
    """GPT-2 and GPT-3: learned positions, head tied."""
    h = _entry(config, 768, "hidden_size", "n_embd")
    heads = _entry(config, 12, "num_attention_heads", "n_head")
    f = _entry(config, 3072, "intermediate_size", "n_inner")
    v = _entry(config, 50304, "vocab_size")
    return TensorPlan(
        hidden=h, heads=heads, kv_heads=heads, head_dim=h // heads, ffn=f, vocab=v,
        layers=_entry(config, 12, "num_hidden_layers", "n_layer"), gated=False,
        dropout=_drops(config, 0.1, "hidden_dropout_prob", "attention_probs_dropout_prob"),
        embedding=(
            PlannedTensor("gpt.embeddings.word_embeddings.weight", (v, h), 0),
            PlannedTensor(
                "gpt.embeddings.position_embeddings.weight",
                (_entry(config, 512, "max_position_embeddings", "n_positions"), h),
            ),
        ),
        layer=_gpt_layer("gpt.decoder.layers.{i}", h, f),
        norm=norm("gpt.decoder.norm", h, True),
        tied_name="lm_head.weight",
    )  # fmt: skip


def opt(config: Mapping[str, Any]) -> TensorPlan:
    """OPT: learned positions, two of them kept free; embeddings of another width are projected (opt-350m)."""
    h = _entry(config, 2048, "hidden_size")
    heads = _entry(config, 32, "num_attention_heads")
    f = _entry(config, 8192, "intermediate_size", "ffn_dim")
    v = _entry(config, 50272, "vocab_size")
    e = _entry(config, 2048, "word_embed_proj_dim")
    before = _entry(config, True, "normalize_before")
    return TensorPlan(
        hidden=h, heads=heads, kv_heads=heads, head_dim=h // heads, ffn=f, vocab=v,
        layers=_entry(config, 24, "num_hidden_layers"), gated=False,
        dropout=_drops(config, 0.1, "hidden_dropout_prob", "attention_probs_dropout_prob"),
        embedding=(
            PlannedTensor("opt.embeddings.word_embeddings.weight", (v, e), 0),
            *(column("opt.embeddings.project_in", e, h) if e != h else ()),
            PlannedTensor(
                "opt.embeddings.position_embeddings.weight",
                (_entry(config, 2048, "max_position_embeddings") + 2, h),
            ),
        ),
        layer=_gpt_layer("opt.decoder.layers.{i}", h, f),
        norm=(
            *(column("opt.decoder.project_out", h, e) if e != h else ()),
            *(norm("opt.decoder.final_layer_norm", h, True) if before else ()),
        ),
        tied_name="lm_head.decoder_weight",
    )  # fmt: skip


def qwen(config: Mapping[str, Any]) -> TensorPlan:
    """Qwen 1: fused q, k, v with bias; ``intermediate_size`` counts both halves of the gated block."""
    h = _entry(config, 4096, "hidden_size")
    heads = _entry(config, 32, "num_attention_heads")
    d = _entry(config, 128, "kv_channels")
    f = _entry(config, 22016, "intermediate_size") // 2
    v = _entry(config, 151936, "vocab_size")
    bias = not _entry(config, True, "no_bias")
    at = "qwen.h.{i}"
    return TensorPlan(
        hidden=h, heads=heads, kv_heads=heads, head_dim=d, ffn=f, vocab=v,
        layers=_entry(config, 32, "num_hidden_layers"), gated=True,
        dropout=_drops(config, 0.0, "attn_dropout_prob", "emb_dropout_prob"),
        embedding=(PlannedTensor("qwen.wte.weight", (v, h), 0),),
        layer=(
            *norm(f"{at}.ln_1", h),
            *column(f"{at}.attn.c_attn", h, 3 * heads * d, True),
            *row(f"{at}.attn.c_proj", heads * d, h, bias),
            *norm(f"{at}.ln_2", h),
            *column(f"{at}.mlp.w1", h, f, bias),
            *column(f"{at}.mlp.w2", h, f, bias),
            *row(f"{at}.mlp.c_proj", f, h, bias),
        ),
        norm=norm("qwen.ln_f", h),
        head=(PlannedTensor("lm_head.weight", (h, v), 1),),
    )  # fmt: skip


def chatglm(config: Mapping[str, Any]) -> TensorPlan:
    """ChatGLM-6B: fused q, k, v; head tied."""
    h = _entry(config, 4096, "hidden_size")
    heads = _entry(config, 32, "num_attention_heads")
    f = _entry(config, 16384, "inner_hidden_size")
    v = _entry(config, 130528, "vocab_size")
    at = "chatglm.transformer"
    return TensorPlan(
        hidden=h, heads=heads, kv_heads=heads, head_dim=h // heads, ffn=f, vocab=v,
        layers=_entry(config, 28, "num_hidden_layers", "num_layers"), gated=False, dropout=False,
        embedding=(PlannedTensor(f"{at}.word_embeddings.weight", (v, h), 0),),
        layer=_glm_layer(f"{at}.layers.{{i}}", "attention", h, f),
        norm=norm(f"{at}.final_layernorm", h, True),
        tied_name="lm_head.decoder_weight",
    )  # fmt: skip


def chatglm_v2(config: Mapping[str, Any]) -> TensorPlan:
    """ChatGLM2 and 3: few key/value heads fused behind the query heads, gated feed-forward in one matrix."""
    h = _entry(config, 4096, "hidden_size")
    heads = _entry(config, 32, "num_attention_heads")
    kv_heads = _entry(config, 1, "multi_query_group_num")
    d = _entry(config, 128, "kv_channels")
    f = _entry(config, 13696, "ffn_hidden_size")
    v = _entry(config, 65024, "vocab_size", "padded_vocab_size")
    bias = _entry(config, False, "add_bias_linear")
    at = "chatglm_v2.encoder.layers.{i}"
    return TensorPlan(
        hidden=h, heads=heads, kv_heads=kv_heads, head_dim=d, ffn=f, vocab=v,
        layers=_entry(config, 28, "num_hidden_layers", "num_layers"), gated=True,
        dropout=_drops(config, 0.0, "hidden_dropout", "attention_dropout"),
        embedding=(PlannedTensor("chatglm_v2.embedding.word_embeddings.weight", (v, h), 0),),
        layer=(
            *norm(f"{at}.input_layernorm", h),
            *column(f"{at}.self_attention.query_key_value", h, (heads + 2 * kv_heads) * d,
                    bias or _entry(config, False, "add_qkv_bias")),
            *row(f"{at}.self_attention.dense", heads * d, h, bias),
            *norm(f"{at}.post_attention_layernorm", h),
            *column(f"{at}.mlp.dense_h_to_4h", h, 2 * f, bias),
            *row(f"{at}.mlp.dense_4h_to_h", f, h, bias),
        ),
        norm=norm("chatglm_v2.encoder.final_layernorm", h),
        head=(PlannedTensor("chatglm_v2.output_layer.weight", (h, v), 1),),
        buffers=("chatglm_v2.rotary_pos_emb.inv_freq",),
    )  # fmt: skip


def glm(config: Mapping[str, Any]) -> TensorPlan:
    """GLM: two tables of learned positions; logits come from the embedding itself."""
    h = _entry(config, 1024, "hidden_size")
    heads = _entry(config, 16, "num_attention_heads")
    v = _entry(config, 30592, "vocab_size")
    blocks = _entry(config, True, "block_position_encoding")
    rows = _entry(config, 512, "max_sequence_length") + blocks
    tables = ("position_embeddings", "block_position_embeddings")[: 1 + blocks]
    return TensorPlan(
        hidden=h, heads=heads, kv_heads=heads, head_dim=h // heads, ffn=4 * h, vocab=v,
        layers=_entry(config, 24, "num_layers", "num_hidden_layers"), gated=False,
        dropout=_drops(config, 0.1, "attention_dropout_prob", "output_dropout_prob"),
        embedding=(
            PlannedTensor("glm.word_embeddings.weight", (v, h), 0),
            *(PlannedTensor(f"glm.transformer.{table}.weight", (rows, h)) for table in tables),
        ),
        layer=_glm_layer("glm.transformer.layers.{i}", "attention", h, 4 * h),
        norm=norm("glm.transformer.final_layernorm", h, True),
    )  # fmt: skip
