"""Qwen 1 and ChatGLM2, which transformers does not have: converted models equal their architectures written in numpy.

The functions below follow the descriptions that come with the published models; tensors are oriented as torch has them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paddlesft.models import convert_hugging_face, load_model
from paddlesft.models.hugging_face import converted
from paddlesft.models.load import paddle_directory
from paddlesft.models.weights import TORCH_LAYOUT, NewTensor, write_weights

VOCABULARY, HIDDEN, HEADS, HEAD, GROUPS, INNER, CONTEXT = 60, 64, 4, 16, 2, 48, 32
IDS = np.random.default_rng(1).integers(0, VOCABULARY, 20)
QWEN = {
    "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
    "num_hidden_layers": 2, "num_attention_heads": HEADS, "kv_channels": HEAD, "intermediate_size": 2 * INNER,
    "seq_length": CONTEXT, "max_position_embeddings": CONTEXT, "layer_norm_epsilon": 1e-3, "rotary_emb_base": 500,
    "no_bias": True, "use_dynamic_ntk": True, "use_logn_attn": True, "tie_word_embeddings": False, "bf16": False,
}  # fmt: skip
CHATGLM2 = {
    "architectures": ["ChatGLMModel"], "model_type": "chatglm", "padded_vocab_size": VOCABULARY, "hidden_size": HIDDEN,
    "num_layers": 2, "num_attention_heads": HEADS, "kv_channels": HEAD, "multi_query_attention": True,
    "multi_query_group_num": GROUPS, "ffn_hidden_size": INNER, "seq_length": CONTEXT, "layernorm_epsilon": 1e-3,
    "add_qkv_bias": True, "add_bias_linear": False, "rmsnorm": True, "post_layer_norm": True, "original_rope": True,
    "apply_query_key_layer_scaling": True, "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
Weights = dict[str, np.ndarray]


def random_weights(shapes: dict[str, tuple[int, ...]]) -> Weights:
    random = np.random.default_rng(2)
    centre = {name: 1.0 if "norm" in name or "ln_" in name else 0.0 for name in shapes}
    return {name: (centre[name] + 0.2 * random.normal(size=s)).astype(np.float32) for name, s in shapes.items()}


def qwen_weights() -> Weights:
    shapes = {"transformer.wte.weight": (VOCABULARY, HIDDEN), "transformer.ln_f.weight": (HIDDEN,)}
    for i in range(2):
        layer = f"transformer.h.{i}."
        shapes |= {f"{layer}ln_1.weight": (HIDDEN,), f"{layer}ln_2.weight": (HIDDEN,)}
        shapes |= {f"{layer}attn.c_attn.weight": (3 * HIDDEN, HIDDEN), f"{layer}attn.c_attn.bias": (3 * HIDDEN,)}
        shapes |= {f"{layer}attn.c_proj.weight": (HIDDEN, HIDDEN), f"{layer}mlp.c_proj.weight": (HIDDEN, INNER)}
        shapes |= {f"{layer}mlp.w1.weight": (INNER, HIDDEN), f"{layer}mlp.w2.weight": (INNER, HIDDEN)}
    return random_weights(shapes | {"lm_head.weight": (VOCABULARY, HIDDEN)})


def chatglm2_weights() -> Weights:
    qkv = (HEADS + 2 * GROUPS) * HEAD
    shapes = {
        "transformer.embedding.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "transformer.encoder.final_layernorm.weight": (HIDDEN,),
        "transformer.output_layer.weight": (VOCABULARY, HIDDEN),
    }
    for i in range(2):
        layer = f"transformer.encoder.layers.{i}."
        shapes |= {f"{layer}input_layernorm.weight": (HIDDEN,), f"{layer}post_attention_layernorm.weight": (HIDDEN,)}
        shapes |= {f"{layer}self_attention.query_key_value.weight": (qkv, HIDDEN)}
        shapes |= {f"{layer}self_attention.query_key_value.bias": (qkv,)}
        shapes |= {f"{layer}self_attention.dense.weight": (HIDDEN, HIDDEN)}
        shapes |= {f"{layer}mlp.dense_h_to_4h.weight": (2 * INNER, HIDDEN)}
        shapes |= {f"{layer}mlp.dense_4h_to_h.weight": (HIDDEN, INNER)}
    frequencies = 10000.0 ** -(np.arange(0, HEAD // 2, 2) / (HEAD // 2))
    return random_weights(shapes) | {"transformer.rotary_pos_emb.inv_freq": frequencies.astype(np.float32)}


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * weight


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention over [tokens, heads, head size]."""
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(HEAD)
    scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", share / share.sum(-1, keepdims=True), v).reshape(len(q), -1)


def qwen_logits(weights: Weights) -> np.ndarray:
    angles = np.outer(np.arange(len(IDS)), 500.0 ** -(np.arange(0, HEAD, 2) / HEAD))
    cos, sin = (np.concatenate([f(angles)] * 2, -1)[:, None] for f in (np.cos, np.sin))

    def rotate(x: np.ndarray) -> np.ndarray:  # the halves of a head are the two parts of a complex number
        return x * cos + np.concatenate([-x[..., HEAD // 2 :], x[..., : HEAD // 2]], -1) * sin

    h = weights["transformer.wte.weight"][IDS]
    for i in range(2):
        w = {name.removeprefix(f"transformer.h.{i}."): value for name, value in weights.items()}
        mixed = rms_norm(h, w["ln_1.weight"]) @ w["attn.c_attn.weight"].T + w["attn.c_attn.bias"]
        q, k, v = (part.reshape(-1, HEADS, HEAD) for part in np.split(mixed, 3, -1))
        h = h + attention(rotate(q), rotate(k), v) @ w["attn.c_proj.weight"].T
        x = rms_norm(h, w["ln_2.weight"])
        h = h + (x @ w["mlp.w1.weight"].T * silu(x @ w["mlp.w2.weight"].T)) @ w["mlp.c_proj.weight"].T
    return rms_norm(h, weights["transformer.ln_f.weight"]) @ weights["lm_head.weight"].T


def chatglm2_logits(weights: Weights) -> np.ndarray:
    half = HEAD // 2
    turn = np.exp(1j * np.outer(np.arange(len(IDS)), weights["transformer.rotary_pos_emb.inv_freq"]))[:, None]

    def rotate(x: np.ndarray) -> np.ndarray:  # neighbours in the first half of a head are a complex number
        turned = (x[..., 0:half:2] + 1j * x[..., 1:half:2]) * turn
        pairs = np.stack([turned.real, turned.imag], -1).reshape(*x.shape[:-1], half)
        return np.concatenate([pairs, x[..., half:]], -1)

    h = weights["transformer.embedding.word_embeddings.weight"][IDS]
    for i in range(2):
        w = {name.removeprefix(f"transformer.encoder.layers.{i}."): value for name, value in weights.items()}
        x = rms_norm(h, w["input_layernorm.weight"])
        mixed = x @ w["self_attention.query_key_value.weight"].T + w["self_attention.query_key_value.bias"]
        q, k, v = np.split(mixed, [HEADS * HEAD, (HEADS + GROUPS) * HEAD], -1)
        q, k, v = (part.reshape(len(IDS), -1, HEAD) for part in (q, k, v))
        k, v = (np.repeat(part, HEADS // GROUPS, 1) for part in (rotate(k), v))
        h = h + attention(rotate(q), k, v) @ w["self_attention.dense.weight"].T
        y = rms_norm(h, w["post_attention_layernorm.weight"]) @ w["mlp.dense_h_to_4h.weight"].T
        h = h + (silu(y[:, :INNER]) * y[:, INNER:]) @ w["mlp.dense_4h_to_h.weight"].T
    last = rms_norm(h, weights["transformer.encoder.final_layernorm.weight"])
    return last @ weights["transformer.output_layer.weight"].T


CASES = {"qwen": (QWEN, qwen_weights, qwen_logits), "chatglm_v2": (CHATGLM2, chatglm2_weights, chatglm2_logits)}


def write_directory(path: Path, config: dict[str, object], weights: Weights) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    write_weights(path, {n: NewTensor("F32", a.shape, lambda a=a: a) for n, a in weights.items()}, TORCH_LAYOUT)
    return path


@pytest.mark.parametrize("family", CASES)
def test_converted_logits(family: str, tmp_path: Path) -> None:
    import paddle

    from paddlesft.models.decoders import decoder_of

    config, make_weights, reference = CASES[family]
    weights = make_weights()
    source = write_directory(tmp_path / "hf", config, weights)
    decoder = decoder_of(load_model(convert_hugging_face(source, tmp_path / "paddle")))
    assert decoder.family.name == family
    ids = paddle.to_tensor(IDS[None])
    mask = paddle.ones_like(ids)
    with paddle.no_grad():
        hidden, _ = decoder.run(ids, mask=mask, position_ids=decoder.positions(ids, mask))
        ours = decoder.logits(hidden)[0].numpy()
    theirs = reference({name: value.astype(np.float64) for name, value in weights.items()})
    assert np.abs(ours - theirs).max() < 1e-4 < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("family", CASES)
def test_unlabelled_weights_are_known_by_their_names(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PADDLESFT_HOME", str(tmp_path / "home"))
    config, make_weights, _ = CASES[family]
    source = write_directory(tmp_path / "hf", config, make_weights())
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content.replace(b'{"format":"pt"}', b'{"n":"o label"}'))
    assert paddle_directory(source) == converted(source)
    assert paddle_directory(converted(source)) == converted(source)
