"""A model of a few thousand parameters and made-up rows: runs of a few steps that take well under a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddlenlp.transformers import LlamaConfig, LlamaForCausalLM

from paddlesft.config import RunConfig, load_run_config
from paddlesft.data.collate import Collator
from paddlesft.data.dataset import SFTDataset
from paddlesft.models.load import quiet_paddlenlp
from paddlesft.models.provenance import write_provenance
from paddlesft.training.arguments import training_arguments
from paddlesft.training.events import Observer
from paddlesft.training.run_log import read_log
from paddlesft.training.trainer import SFTTrainer
from paddlesft.tuning.prepare import prepare_for_tuning, save_adapter

VOCABULARY = 96


def small_config(*overrides: str) -> RunConfig:
    """A config that passes the rules; model and data are made here instead of being read."""
    return load_run_config(None, ["output_dir=x", "model_name_or_path=x", "train_dataset_path=x", *overrides])


def small_model(seed: int = 3, **overrides: Any) -> LlamaForCausalLM:
    """A random Llama with grouped-query attention: hidden 32, 2 layers, 4 heads, 2 key/value heads."""
    paddle.seed(seed)
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "seq_length": 128,
        "tie_word_embeddings": False, "dtype": "float32",
    }  # fmt: skip
    with quiet_paddlenlp():
        model = LlamaForCausalLM(LlamaConfig(**{**sizes, **overrides}))
    for parameter in model.parameters():
        if len(parameter.shape) > 1:  # larger than PaddleNLP's start, so that attention is not nearly uniform
            parameter.set_value(paddle.randn(parameter.shape) * 0.2)
    return model


def small_rows(count: int, seed: int = 0) -> tuple[list[list[int]], list[list[bool]]]:
    """Random token ids and which of them are trained: a prompt, then a reply, of very different lengths."""
    draw = np.random.default_rng(seed)
    ids, trained = [], []
    for _ in range(count):
        length = int(draw.integers(5, 24))
        prompt = int(draw.integers(1, length - 1))
        ids.append(draw.integers(5, VOCABULARY - 1, length).tolist())
        trained.append([False] * prompt + [True] * (length - prompt))
    return ids, trained


def small_dataset(count: int, seed: int = 0, packs: list[list[int]] | None = None) -> SFTDataset:
    """A data set of ``small_rows``."""
    return SFTDataset(*small_rows(count, seed), packs=packs)


def batch_of(dataset: SFTDataset, indices: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """Collate rows of a data set."""
    return Collator(0)([dataset[i] for i in (range(len(dataset)) if indices is None else indices)])


class Recorder(Observer):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def message(self, text: str) -> None:
        self.events.append(("message", text))

    def warning(self, text: str) -> None:
        self.events.append(("warning", text))

    def log(self, record: Any) -> None:
        self.events.append(("log", record))

    def evaluation(self, step: int, metrics: Any) -> None:
        self.events.append(("evaluation", metrics))

    def checkpoint(self, path: Path) -> None:
        self.events.append(("checkpoint", path))

    def of(self, kind: str) -> list[Any]:
        """Return what was told of one kind."""
        return [value for name, value in self.events if name == kind]


def small_run(
    output_dir: Path,
    *overrides: str,
    rows: int = 21,
    eval_rows: int = 5,
    resume: Path | None = None,
    observer: Observer | None = None,
    model: Any = None,
) -> SFTTrainer:
    """Train a small model for a few steps and return the trainer.

    Args:
        output_dir: of the run.
        overrides: config keys as ``key=value``.
        rows: training rows.
        eval_rows: evaluation rows.
        resume: a checkpoint.
        observer: told what happens.
        model: instead of ``small_model()``.
    """
    keys = [f"output_dir={output_dir}", "do_train=true", "logging_steps=1", "learning_rate=1e-2", "save_strategy=no"]
    if any(key.startswith("evaluation_strategy") for key in overrides):
        keys.append("eval_dataset_path=x")
    config = small_config(*keys, *overrides)
    with quiet_paddlenlp():
        model = prepare_for_tuning(model or small_model(), config)
        arguments = training_arguments(config)

        def write_weights(directory: Path, unified: bool = True) -> None:
            if not save_adapter(model, directory):
                model.save_pretrained(str(directory), safe_serialization=True)
            write_provenance(directory, source="test")

        trainer = SFTTrainer(
            model,
            arguments,
            Collator(0),
            small_dataset(rows),
            small_dataset(eval_rows, seed=1) if config.training.evaluation_strategy != "no" else None,
            observer,
            write_weights=write_weights,
            length_grouping=config.data.length_grouping,
        )
        trainer.train(str(resume) if resume else None)
    return trainer


def losses(output_dir: Path) -> list[tuple[int, float]]:
    """Return (step, loss) of every log line of a run."""
    return [(record["step"], record["loss"]) for record in read_log(output_dir) if record["kind"] == "train"]
