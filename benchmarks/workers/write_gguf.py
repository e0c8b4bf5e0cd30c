"""Write a Llama model as GGUF for llama.cpp, without a tokenizer, as decode_speed.py passes token ids.

Arguments: the model directory in Hugging Face's layout, F32 or Q8_0, and the new file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def main(model: str, kind: str, path: str) -> None:
    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, array in load_file(Path(model) / "model.safetensors").items():
        array = array.astype("float32")
        if name.endswith("q_proj.weight"):
            array = interleaved(array, heads)
        elif name.endswith("k_proj.weight"):
            array = interleaved(array, kv_heads)
        add(writer, gguf_name(name), array, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a weight."""
    outer = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
    if name in outer:
        return f"{outer[name]}.weight"
    _, _, layer, *rest = name.removesuffix(".weight").split(".")
    return f"blk.{layer}.{NAMES['.'.join(rest)]}.weight"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of queries or keys as llama.cpp turns them: pairs stand together, not half a head apart."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def add(writer: gguf.GGUFWriter, name: str, array: np.ndarray, kind: str) -> None:
    if kind == "F32" or array.ndim == 1:
        writer.add_tensor(name, array)
        return
    raw = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quants.quantize(array, raw), raw_dtype=raw)


if __name__ == "__main__":
    main(*sys.argv[1:])
