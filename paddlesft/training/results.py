"""What a run leaves behind: the model or adapter, the metrics, the loss plot."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paddlesft.directories import write_json
from paddlesft.models.directory import TOKENIZER_FILES
from paddlesft.models.provenance import FILE as PROVENANCE
from paddlesft.models.provenance import read_provenance
from paddlesft.training.loss_plot import FILE as PLOT
from paddlesft.training.loss_plot import plot_losses
from paddlesft.training.run_log import FILE as RUN_LOG
from paddlesft.training.run_log import read_log

ALL_RESULTS = "all_results.json"
SOURCE = "paddlesft train"  # what ``source`` in paddlesft.json begins with
RUN_FILES = (
    "checkpoint-*", ".checkpoint-*", ".final.incomplete", RUN_LOG, PLOT, "*_results.json", "trainer_state.json",
)  # fmt: skip
MODEL_FILES = (
    "model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", PROVENANCE,
    "lora_model_state.*", "lora_config.json", "prefix_model_state.pdparams", "prefix_config.json", "pre_caches.npy",
)  # fmt: skip


def save_metrics(output_dir: Path, split: str, metrics: Mapping[str, Any]) -> None:
    """Write ``{split}_results.json`` and add the metrics to ``all_results.json``.

    Args:
        output_dir: the run's directory.
        split: train, eval or test.
        metrics: JSON values.
    """
    write_json(output_dir / f"{split}_results.json", metrics)
    path = output_dir / ALL_RESULTS
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**before, **metrics})


def save_final_model(output_dir: Path, write_weights: Callable[[Path], None]) -> None:
    """Write the trained model or adapter into the run's directory.

    It is written into a hidden directory first; ``paddlesft.json`` moves last, so that a directory with that file is
    complete.

    Args:
        output_dir: the run's directory.
        write_weights: writes the content into a directory.
    """
    scratch = output_dir / ".final.incomplete"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write_weights(scratch)
    (output_dir / PROVENANCE).unlink(missing_ok=True)
    for path in sorted(scratch.iterdir(), key=lambda p: p.name == PROVENANCE):
        os.replace(path, output_dir / path.name)
    scratch.rmdir()


def save_plot(output_dir: Path, title: str) -> Path | None:
    """Draw ``loss.png`` from the run's log; returns None when there is too little to draw."""
    return plot_losses(read_log(output_dir), output_dir / PLOT, title)


def remove_earlier_run(output_dir: Path) -> list[str]:
    """Remove what an earlier run has written into a directory that is to be overwritten.

    Model and adapter files go only when ``paddlesft.json`` says that a run of this package wrote them; others stay.

    Returns:
        The names of what was removed.
    """
    patterns = list(RUN_FILES)
    if str(read_provenance(output_dir).get("source", "")).startswith(SOURCE):
        patterns += [*MODEL_FILES, *TOKENIZER_FILES]
    found = sorted({path for pattern in patterns for path in output_dir.glob(pattern)})
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [path.name for path in found]
