"""The conversations of one split: its files read, mixed, limited, or set aside from the training rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from paddlesft.data.mixing import mixed_order
from paddlesft.data.reading import ReadResult, read_conversations
from paddlesft.data.sources import find_sources, has_split


def read_split(data_config: Any, split: str, seed: int = 42) -> ReadResult:
    """Read the conversations of a split, mixed and limited as configured; problems are collected, not raised.

    Args:
        data_config: a ``DataConfig``.
        split: as in ``build_dataset``.
        seed: as in ``build_dataset``.
    """
    if split == "quant" and not has_split(data_config, "quant"):
        split = "train"
    limit = {"train": data_config.max_train_samples, "eval": data_config.max_eval_samples}.get(split)
    ratio = data_config.eval_split_ratio
    if split == "eval" and ratio and not has_split(data_config, "eval"):
        whole = _read_mixed(data_config, "train", None, seed)
        return _limited(_set_aside(whole, ratio, seed, evaluation=True), limit)
    if split == "train" and ratio and not has_split(data_config, "eval"):
        whole = _read_mixed(data_config, "train", None, seed)
        return _limited(_set_aside(whole, ratio, seed, evaluation=False), limit)
    return _read_mixed(data_config, split, limit, seed)


def _read_mixed(data_config: Any, split: str, limit: int | None, seed: int) -> ReadResult:
    sources = find_sources(data_config, split)
    declared = data_config.train_dataset_type if split in ("train", "quant") else data_config.eval_dataset_type
    alone = len(sources) == 1 or data_config.mix_strategy == "concat"
    results = [
        read_conversations(source.files, declared, data_config.column_map, limit if alone else None)
        for source in sources
    ]
    if len(results) == 1:
        return results[0]
    strategy = data_config.mix_strategy if split == "train" else "concat"
    shares = [source.probability for source in sources]
    order: list[tuple[int, int]] = []
    if all(result.conversations for result in results):  # else there are problems to report, and nothing to mix
        known = None if any(share is None for share in shares) else [float(share or 0) for share in shares]
        order = mixed_order([len(result.conversations) for result in results], strategy, known, seed)
    mixed = ReadResult(
        [results[source].conversations[row] for source, row in order],
        " + ".join(dict.fromkeys(result.format for result in results)),
        results[0].declared,
        [file for result in results for file in result.files],
        [problem for result in results for problem in result.problems],
        sum(result.rows for result in results),
    )
    return _limited(mixed, limit)


def _limited(result: ReadResult, limit: int | None) -> ReadResult:
    return result if limit is None else replace(result, conversations=result.conversations[:limit])


def _set_aside(result: ReadResult, ratio: float, seed: int, evaluation: bool) -> ReadResult:
    count = len(result.conversations)
    aside = max(1, round(count * ratio)) if count > 1 else 0
    chosen = set(np.random.default_rng(seed).permutation(count)[:aside].tolist())
    kept = [c for i, c in enumerate(result.conversations) if (i in chosen) == evaluation]
    return replace(result, conversations=kept)
