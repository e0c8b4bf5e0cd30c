"""Sharded checkpoints as parallel runs of PaddleNLP write them, made in one process by PaddleNLP's own functions."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from tests.tiny_models import TOKENIZER_FILES as LLAMA_TOKENIZER

COPIED = ("generation_config.json", "paddlesft.json")


def suffix(tp: int, tensor: int, pp: int, stage: int) -> str:
    """The part of a file's name that says its rank."""
    return "_".join(([f"tp{tensor:02d}"] if tp > 1 else []) + ([f"pp{stage:02d}"] if pp > 1 else []))


def stage_of(name: str, layers: int, pp: int) -> set[int]:
    """Stages that hold a weight: layers in equal ranges, the embedding first, the last norm and the head last."""
    number = re.search(r"\.(?:layers|h)\.(\d+)\.", name)
    if number:
        return {int(number[1]) // (layers // pp)}
    return {0} if "embed" in name or "wte" in name or "inv_freq" in name else {pp - 1}


def write_model_shards(
    source: Path, path: Path, tp: int = 1, pp: int = 1, ending: str = "pdparams", strip: str = ""
) -> Path:
    """Write the shards of a model.

    Args:
        source: the whole model's directory.
        path: the directory to create.
        tp: tensor-parallel degree.
        pp: pipeline stages.
        ending: pdparams or safetensors.
        strip: leave this first part of names out, as some pipeline classes do.
    """
    import paddle
    from paddlenlp import transformers as zoo

    from paddlesft.models import family_of, load_model

    model = load_model(source)
    family, config = family_of(model), model.config
    path.mkdir(parents=True)
    layers = family.num_layers(config)
    kept = {
        name: value for name, value in model.state_dict().items()
        if not any(re.search(key, name) for key in model._keys_to_ignore_on_save or [])
    }  # fmt: skip
    for tensor in range(tp):
        config.tensor_parallel_degree, config.tensor_parallel_rank = tp, tensor
        state = dict(kept)
        if tp > 1:
            cls = getattr(zoo, family.causal_lm)
            state = cls.convert_tensor_parallel(None, config, state_dict=state, ignore_error=True)
            head = next((name for name in state if name.startswith("lm_head")), None)
            if head and config.tie_word_embeddings:  # one tensor in memory: what the embedding became, it is too
                embedding = next(name for name in state if re.search(r"word_embeddings\.weight|embed_tokens|wte", name))
                if tuple(kept[head].shape) == tuple(kept[embedding].shape):
                    state[head] = state[embedding]
        for stage in range(pp):
            part = {name.removeprefix(strip): value for name, value in state.items() if stage in stage_of(name, layers, pp)}
            _save(part, path / f"model{'_state' if ending == 'pdparams' else ''}.{suffix(tp, tensor, pp, stage)}.{ending}")
    config.tensor_parallel_degree, config.tensor_parallel_rank = tp, 0
    content = json.loads((source / "config.json").read_text())
    content |= {"architectures": [family.pipe_class or family.causal_lm] if pp > 1 else [family.causal_lm]}
    (path / "config.json").write_text(json.dumps(content | {"tensor_parallel_degree": tp}))
    for file in source.iterdir():
        if file.name in COPIED or file.name in LLAMA_TOKENIZER or file.suffix in (".tiktoken", ".model", ".txt"):
            shutil.copy(file, path / file.name)
    del paddle
    return path


def _save(part: dict[str, Any], path: Path) -> None:
    import paddle

    if path.suffix == ".pdparams":
        paddle.save(part, str(path))
    else:
        from safetensors.numpy import save_file

        save_file({name: value.numpy() for name, value in part.items()}, path, metadata={"format": "np"})
