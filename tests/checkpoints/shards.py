"""Sharded checkpoints as parallel runs of PaddleNLP write them, made in one process by PaddleNLP's own functions."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

EMBEDDING = re.compile(r"(word_embeddings|embed_tokens|wte)\.weight$")


def write_even_family(name: str, path: Path, **overrides: object) -> Path:
    """Write the tiny model of a family with a vocabulary that 8 divides; OPT's head is its embedding, as published."""
    from paddlesft.models import load_tokenizer
    from paddlesft.models.stored import stored_weights
    from paddlesft.models.weights import PADDLE_LAYOUT, NewTensor, write_weights
    from tests.tiny_families import write_tiny_family, write_tokenizer

    tokenizer = path.with_name(f"{path.name}-tokenizer")
    tokenizer.mkdir()
    write_tokenizer(name, tokenizer)
    size = -(-len(load_tokenizer(tokenizer)) // 8) * 8
    more = {"padded_vocab_size": size} if name == "chatglm_v2" else {}
    write_tiny_family(name, path, **{"vocab_size": size, **more, **overrides})
    if name == "opt":
        kept = {key: tensor for key, tensor in stored_weights(path).items() if not key.startswith("lm_head")}
        arrays = {key: tensor.make().copy() for key, tensor in kept.items()}
        tensors = {key: NewTensor("F32", array.shape, lambda array=array: array) for key, array in arrays.items()}
        write_weights(path, tensors, PADDLE_LAYOUT)
    return path


def stage_of(name: str, layers: int, pp: int, tied: bool) -> set[int]:
    """Stages that hold a weight: layers in equal ranges, the embedding first, the last norm and the head last."""
    number = re.search(r"\.(?:layers|h)\.(\d+)\.", name)
    if number:
        return {int(number[1]) // (layers // pp)}
    if EMBEDDING.search(name) and tied:  # the last stage holds it again, as its head
        return {0, pp - 1}
    return {0} if "embed" in name or "wte" in name or "inv_freq" in name else {pp - 1}


def write_model_shards(
    source: Path, path: Path, tp: int = 1, pp: int = 1, ending: str = "pdparams", without: str = ""
) -> Path:
    """Write the shards of a model, divided by PaddleNLP's ``convert_tensor_parallel``.

    Args:
        source: the whole model's directory.
        path: the directory to create.
        tp: tensor-parallel degree.
        pp: pipeline stages.
        ending: pdparams or safetensors.
        without: leave this first part of names out, as some pipeline classes do.
    """
    import paddlenlp.transformers as zoo

    from paddlesft.models import family_of, load_model
    from paddlesft.models.directory import copy_tokenizer

    model = load_model(source)
    family, config = family_of(model), model.config
    path.mkdir(parents=True)
    layers, stem = family.num_layers(config), "model_state" if ending == "pdparams" else "model"
    ignored = model._keys_to_ignore_on_save or []
    kept = {name: v for name, v in model.state_dict().items() if not any(re.search(key, name) for key in ignored)}
    embedding = next(name for name in kept if EMBEDDING.search(name))
    heads = [name for name, value in kept.items() if name != embedding and value is kept[embedding]]
    for tensor in range(tp):
        config.tensor_parallel_degree, config.tensor_parallel_rank = tp, tensor
        state = dict(kept)
        if tp > 1:
            cls = getattr(zoo, family.causal_lm)
            state = cls.convert_tensor_parallel(None, config, state_dict=state, ignore_error=True)
            for head in heads:  # one tensor in a rank's memory
                state[head] = state[embedding]
        for stage in range(pp):
            ranks = [f"tp{tensor:02d}"] * (tp > 1) + [f"pp{stage:02d}"] * (pp > 1)
            part = {
                name.removeprefix(without): value for name, value in state.items()
                if stage in stage_of(name, layers, pp, bool(heads))
            }  # fmt: skip
            save(part, path / f"{stem}.{'_'.join(ranks)}.{ending}")
    content = json.loads((source / "config.json").read_text())
    content |= {"architectures": [family.pipe_class if pp > 1 else family.causal_lm], "tensor_parallel_degree": tp}
    (path / "config.json").write_text(json.dumps(content))
    copy_tokenizer(source, path)
    if (source / "generation_config.json").is_file():
        shutil.copy(source / "generation_config.json", path)
    return path


def save(part: dict[str, Any], path: Path) -> None:
    """Write one rank's file as PaddleNLP does."""
    import paddle

    if path.suffix == ".pdparams":
        paddle.save(part, str(path))
    else:
        import numpy as np
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in part.items()}
        save_file(arrays, path, metadata={"format": "np"})


def change(file: Path, **values: Any) -> None:
    """Change weights of a ``.pdparams`` file by a function of the old array; None removes one."""
    import numpy as np
    import paddle

    content = paddle.load(str(file), return_numpy=True)
    content = {key: value for key, value in content.items() if hasattr(value, "shape")}
    for name, value in values.items():
        if value is None:
            del content[name]
        else:
            content[name] = np.asarray(value(content.get(name)))
    paddle.save({name: paddle.to_tensor(value) for name, value in content.items()}, str(file))
