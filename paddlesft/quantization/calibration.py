"""The rows that a model is calibrated and measured on: rendered as training renders them, checked beforehand.

Shape legend: b rows of a batch, s positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from paddlesft.data.collate import Collator
from paddlesft.data.dataset import SFTDataset, render_conversations
from paddlesft.data.problems import counted
from paddlesft.data.sources import has_split
from paddlesft.data.splits import read_split
from paddlesft.errors import DataError

if TYPE_CHECKING:
    from paddlesft.config import RunConfig
    from paddlesft.data.reading import ReadResult
    from paddlesft.data.rendering import Renderer

FEW_TOKENS = 2048  # fewer than this in all say little about a layer's inputs
SHORT_ROW = 16  # tokens; mostly the marks of a template
HELD_OUT_ROWS = 64

Warn = Callable[[str], None]


@dataclass
class Calibration:
    """The batches that layers are looked at with.

    Attributes:
        batches: collated: ``input_ids``, ``labels`` and ``attention_mask`` [b, s].
        rows: how many rows they hold.
        tokens: in those rows, padding left out.
        padded: positions of the batches, padding included.
        files: that the rows come from; none for the fixed prompts.
        template: the template's name.
        fingerprint: of the rows, their order and batches.
    """

    batches: list[Mapping[str, Any]]
    rows: int
    tokens: int
    padded: int
    files: list[str] = field(default_factory=list)
    template: str = ""
    fingerprint: str = ""


@dataclass
class Rows:
    """What a quantization reads.

    Attributes:
        calibration: see there.
        held_out: rows to measure on, which calibration does not see; None where there is no data.
        held_out_files: that they come from.
    """

    calibration: Calibration
    held_out: SFTDataset | None = None
    held_out_files: list[str] = field(default_factory=list)


def read_rows(
    run_config: RunConfig,
    renderer: Renderer,
    batches: int,
    calibrates: bool,
    prompts: Sequence[Sequence[int]],
    warn: Warn,
) -> Rows:
    """Read the rows to calibrate on (``quant.json``, else training rows) and those to measure on (evaluation rows, else
    test rows, else some that calibration leaves alone).

    Both are drawn at random by ``seed``, since files are often sorted; only what is drawn is rendered.

    Args:
        run_config: where the data is; ``per_device_train_batch_size`` rows make a batch.
        renderer: of the model's own template.
        batches: how many are wanted.
        calibrates: whether the methods learn from what they see; if not, one batch is enough to measure errors.
        prompts: token ids that stand in for rows where there is no data.
        warn: told what the user should look at.

    Returns:
        The rows.

    Raises:
        DataError: there is no row to calibrate on, or rows are bad; all of them are listed.
    """
    data, seed, size = run_config.data, run_config.training.seed, run_config.training.per_device_train_batch_size
    wanted = size * (batches if calibrates else 1)
    measured = HELD_OUT_ROWS if data.max_eval_samples is None else data.max_eval_samples
    named = any(has_split(data, split) for split in ("quant", "train"))
    collator = Collator(renderer.pad_token_id)
    own = "eval" if has_split(data, "eval") or data.eval_split_ratio else "test" if has_split(data, "test") else None
    rows = Rows(_collated([{"input_ids": list(ids), "labels": list(ids)} for ids in prompts], collator, 1))
    spare = 0
    read = read_split(data, "quant", seed) if named else None
    if read is not None and own is None and not (has_split(data, "quant") and has_split(data, "train")):
        spare = min(measured, -(-len(read.conversations) // 4))  # set aside
    if read is not None:
        order = np.random.default_rng(seed).permutation(len(read.conversations)).tolist()
        seen = order[: len(order) - spare] or order
        drawn, report = _drawn(read, seen, wanted, renderer, data, "quant")
        taken = [drawn[i] for i in range(min(len(drawn), wanted))]
        rows.calibration = _collated(taken, collator, size)
        rows.calibration.files, rows.calibration.template = report.files, report.template
        if calibrates:
            _check([len(row["input_ids"]) for row in taken], wanted, size, warn)
    if own is not None:
        held = read_split(data, own, seed)
        order = np.random.default_rng(seed).permutation(len(held.conversations)).tolist()
    elif read is not None and not spare:  # quant.json calibrates, training rows measure
        held = read_split(data, "train", seed)
        order = np.random.default_rng(seed).permutation(len(held.conversations)).tolist()
    elif read is not None:
        held, order = read, order[len(order) - spare :]
    else:
        return rows
    rows.held_out, report = _drawn(held, order, measured, renderer, data, own or "train")
    rows.held_out_files = report.files
    if own is None:
        warn(
            f"There are no evaluation rows: quality is measured on {len(rows.held_out)} training rows that calibration "
            "does not see, but that the model may have been trained on. Set eval_dataset_path for an honest figure."
        )
    return rows


def _drawn(
    read: ReadResult,
    order: Sequence[int],
    wanted: int,
    renderer: Renderer,
    data: Any,
    split: str,
) -> tuple[SFTDataset, Any]:
    """Render conversations in an order until there are enough rows; some may be dropped for their length."""
    count = wanted
    while True:
        part = replace(read, conversations=[read.conversations[i] for i in order[:count]])
        if not part.conversations and not read.problems:
            raise DataError(f"No row of {', '.join(map(str, read.files))} can be used.")
        try:
            rows, report = render_conversations(part, renderer, data, split)
        except DataError:  # all of these are dropped, or some are bad, which comes up again when all are looked at
            if count >= len(order):
                raise
        else:
            if len(rows) >= wanted or count >= len(order):
                return rows, report
        count *= 2


def _collated(rows: Sequence[Mapping[str, Any]], collator: Collator, size: int) -> Calibration:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.asarray(row["input_ids"], np.int64).tobytes() + b"|")
    digest.update(str(size).encode())
    batches = [collator(rows[i : i + size]) for i in range(0, len(rows), size)]
    return Calibration(
        batches,
        len(rows),
        sum(len(row["input_ids"]) for row in rows),
        sum(batch["input_ids"].size for batch in batches),
        fingerprint=f"sha256:{digest.hexdigest()}",
    )


def _check(lengths: Sequence[int], wanted: int, size: int, warn: Warn) -> None:
    """Warn of rows that say little about a layer's inputs."""
    if len(lengths) < wanted:
        warn(
            f"calibration: found {counted(len(lengths), 'row')}; {wanted} are wanted "
            f"({counted(wanted // size, 'batch', 'batches')} of {size}). More rows make scales more reliable."
        )
    if sum(lengths) < FEW_TOKENS:
        warn(
            f"calibration: {sum(lengths)} tokens in all, which is little to learn ranges from. Give more or longer "
            "rows (128 rows of your own task are usual)."
        )
    short = sum(length < SHORT_ROW for length in lengths)
    if short > len(lengths) // 2:
        warn(
            f"calibration: {short} of {counted(len(lengths), 'row')} "
            f"{'is' if short == 1 else 'are'} shorter than {SHORT_ROW} tokens, which shows the model little but the "
            "marks of its template."
        )
