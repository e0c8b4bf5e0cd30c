"""Tiny random models of transformers, and what transformers computes with directories that others have written.

Run by the tests in the torch environment:
    hf_models.py make OUT                     every model of MODELS into OUT/NAME, its logits into OUT/NAME.npy
    hf_models.py logits OUT INPUTS.npz DIR... the logits of each directory into OUT/NAME-OF-DIR.npy
The inputs are ``ids`` and ``mask``, [rows, tokens]; those of ``make`` are in OUT/inputs.npz. Prints the models' names.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

SIZES = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {
    **SIZES, "intermediate_size": 112, "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_theta": 5000.0,
    "rms_norm_eps": 1e-4, "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
GPT2 = {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 96, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip
OPT = {**SIZES, "ffn_dim": 112, "max_position_embeddings": 96, "word_embed_proj_dim": 64}
BLOOM = {"vocab_size": 300, "hidden_size": 64, "n_layer": 2, "n_head": 4}
MODELS = {
    "llama": ("Llama", LLAMA),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": None}),
    "mistral-window": ("Mistral", {**LLAMA, "sliding_window": 16}),
    "qwen2": ("Qwen2", LLAMA),
    "qwen2-tied": ("Qwen2", {**LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 4}),
    "gemma": ("Gemma", {**LLAMA, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}),
    "gemma-wide-heads": ("Gemma", {**LLAMA, "num_key_value_heads": 4, "head_dim": 32}),
    "gemma-exact-gelu": ("Gemma", {**LLAMA, "head_dim": 16, "hidden_act": "gelu", "hidden_activation": "gelu"}),
    "bloom": ("Bloom", BLOOM),
    "bloom-three-heads": (
        "Bloom",
        {**BLOOM, "hidden_size": 48, "n_head": 3, "apply_residual_connection_post_layernorm": True,
         "layer_norm_epsilon": 1e-3},
    ),
    "opt": ("OPT", OPT),
    "opt-projected": ("OPT", {**OPT, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "opt-untied-gelu": ("OPT", {**OPT, "tie_word_embeddings": False, "activation_function": "gelu_new"}),
    "gpt2": ("GPT2", GPT2),
    "gpt2-narrow": ("GPT2", {**GPT2, "n_inner": 80, "activation_function": "gelu_pytorch_tanh"}),
}  # fmt: skip
CLASSES = {"GPT2": "GPT2LMHeadModel"}


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [3, 40] and their mask; two rows are padded on the left, with a token that is in their text too."""
    ids = torch.from_numpy(np.random.default_rng(5).integers(0, 300, (3, 40)))
    ids[0, 7] = ids[1, 30] = 3
    mask = torch.ones_like(ids)
    for row, padding in ((1, 9), (2, 33)):
        ids[row, :padding] = 3
        mask[row, :padding] = 0
    return ids, mask


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    given = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in model.forward.__code__.co_varnames and model.config.model_type not in ("opt", "bloom"):
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return model(**given).logits.numpy()


def make(out: Path) -> None:
    ids, mask = inputs()
    np.savez(out / "inputs.npz", ids=ids.numpy(), mask=mask.numpy())
    for name, (kind, sizes) in MODELS.items():
        torch.manual_seed(3)
        config = getattr(transformers, f"{kind}Config")(**sizes, attn_implementation="eager")
        model = getattr(transformers, CLASSES.get(kind, f"{kind}ForCausalLM"))(config).eval()
        for parameter in model.parameters():  # norms and biases too, which begin as ones and zeros
            centre = 1.0 if parameter.ndim == 1 and parameter.mean() > 0.5 else 0.0
            parameter.data = centre + 0.2 * torch.randn_like(parameter)
        model.save_pretrained(out / name, safe_serialization=True)
        np.save(out / f"{name}.npy", logits(model, ids, mask))


def read(out: Path, given: Path, directories: list[Path]) -> None:
    arrays = np.load(given)
    ids, mask = torch.from_numpy(arrays["ids"]), torch.from_numpy(arrays["mask"])
    for directory in directories:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            directory, attn_implementation="eager", output_loading_info=True
        )
        assert not any(info.values()), f"{directory}: {info}"
        np.save(out / f"{directory.name}.npy", logits(model.eval(), ids, mask))


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    if sys.argv[1] == "make":
        make(place)
    else:
        read(place, Path(sys.argv[3]), [Path(arg) for arg in sys.argv[4:]])
    print(json.dumps(sorted(MODELS)))
