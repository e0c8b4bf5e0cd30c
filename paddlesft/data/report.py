"""What became of the data, in numbers, and what exactly is trained, in text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paddlesft.data.collate import IGNORED
from paddlesft.data.grouping import length_grouped_indices, padded_positions
from paddlesft.data.problems import counted
from paddlesft.data.truncation import Fitted


@dataclass
class DataReport:
    """Numbers about one split.

    Attributes:
        split: "train", "eval", "test" or "quant".
        files: files read.
        format: the format's name, and whether it was declared.
        template: the template's name.
        rows_read: rows in the files (after mixing and limits).
        rows: sequences the conversations became, before packing.
        packs: sequences after packing; None when not packed.
        tokens: tokens in all sequences, prompt and reply.
        trained_tokens: tokens trained on.
        truncated_rows, dropped_rows: by the truncation policy.
        prompt_tokens_lost, reply_tokens_lost: by truncation and dropping.
        split_conversations: conversations that needed several sequences.
        longest, median_length: tokens of a sequence, before packing.
        notices: what else a user should know.
        fingerprint: of the data as it is trained on.
    """

    split: str = "train"
    files: list[str] = field(default_factory=list)
    format: str = ""
    declared: bool = False
    template: str = ""
    rows_read: int = 0
    rows: int = 0
    packs: int | None = None
    tokens: int = 0
    trained_tokens: int = 0
    truncation: str = ""
    truncated_rows: int = 0
    dropped_rows: int = 0
    prompt_tokens_lost: int = 0
    reply_tokens_lost: int = 0
    split_conversations: int = 0
    longest: int = 0
    median_length: int = 0
    capacity: int = 0
    notices: list[str] = field(default_factory=list)
    fingerprint: str = ""
    lengths: list[int] = field(default_factory=list, repr=False)

    def count(self, fitted: Fitted) -> None:
        """Add what the truncation policy did to one sequence."""
        self.truncated_rows += fitted.truncated
        self.prompt_tokens_lost += fitted.prompt_tokens_lost
        self.reply_tokens_lost += fitted.reply_tokens_lost
        if fitted.row is None:
            self.dropped_rows += 1
            return
        self.rows += 1
        self.tokens += len(fitted.row.input_ids)
        self.trained_tokens += fitted.row.num_trained
        self.longest = max(self.longest, len(fitted.row.input_ids))

    @property
    def trained_share(self) -> float:
        """Trained tokens over all tokens."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    def padding_share(
        self, batch_size: int, length_grouping: bool = False, seed: int = 42, multiple_of: int = 1, width: int = 0
    ) -> float:
        """Return the share of positions that are padding when the rows are batched in a shuffled order.

        Args:
            batch_size: rows in a batch.
            length_grouping: whether batches hold rows of similar length.
            seed: of the order.
            multiple_of: what batch widths are rounded up to.
            width: fixed width of every batch; 0 for that of its longest row.
        """
        if not self.lengths:
            return 0.0
        if width:
            return 1.0 - sum(self.lengths) / (width * len(self.lengths))
        per_group = 50 if length_grouping else 1
        order: Sequence[int] = length_grouped_indices(self.lengths, batch_size, seed, per_group)
        return 1.0 - sum(self.lengths) / padded_positions(self.lengths, order, batch_size, multiple_of)

    def table(self, batch_size: int | None = None, **batching: Any) -> list[tuple[str, str]]:
        """Return (label, value) lines for a person.

        Args:
            batch_size: adds the padding share of batches of this size.
            batching: further arguments of ``padding_share``.
        """
        lengths = f"longest {self.longest:,}" + (f", median {self.median_length:,}" if self.median_length else "")
        how = "declared" if self.declared else "recognised"
        lines = [
            ("files", ", ".join(self.files[:3]) + (f" and {len(self.files) - 3} more" if len(self.files) > 3 else "")),
            ("format", f"{self.format} ({how})"),
            ("template", "the tokenizer's own" if self.template == "tokenizer" else self.template),
            ("rows", f"{self.rows_read:,}"),
        ]
        if self.rows != self.rows_read:
            lines.append(("sequences", f"{self.rows:,}"))
        if self.packs is not None:
            filled = sum(self.lengths) / (self.capacity * self.packs) if self.packs else 0.0
            lines.append(("packs", f"{self.packs:,} of {self.capacity:,} positions, {filled:.1%} filled"))
        lines += [
            ("tokens", f"{self.tokens:,} ({lengths})"),
            ("trained tokens", f"{self.trained_tokens:,} ({self.trained_share:.1%})"),
        ]
        if batch_size:
            share = self.padding_share(batch_size, **batching)
            lines.append(("padding", f"{share:.1%} in batches of {batch_size}"))
        cut = f"{self.truncated_rows:,} rows cut, {self.dropped_rows:,} dropped"
        lost = f"{self.prompt_tokens_lost:,} prompt and {self.reply_tokens_lost:,} reply tokens lost"
        lines.append((f"truncation ({self.truncation})", f"{cut}; {lost}"))
        if self.split_conversations:
            split = counted(self.split_conversations, "conversation")
            lines.append(("split", f"{split} into one sequence for each reply"))
        lines.append(("fingerprint", self.fingerprint[:23] + "…"))
        return lines

    def text(self, batch_size: int | None = None, **batching: Any) -> str:
        """Return the table and the notices as plain text for a log."""
        lines = self.table(batch_size, **batching)
        width = max(len(label) for label, _ in lines)
        return "\n".join(
            [f"{self.split} data"]
            + [f"  {label:<{width}}  {value}" for label, value in lines]
            + [f"  note: {notice}" for notice in self.notices]
        )


@dataclass(frozen=True)
class Span:
    """A stretch of text of which all tokens are trained, or none.

    Attributes:
        text: the decoded text.
        trained: whether its tokens are trained.
        tokens: how many they are.
        segment: number of the row inside a pack, from 0.
    """

    text: str
    trained: bool
    tokens: int
    segment: int = 0


def first_sample_view(dataset: Any, renderer: Any, index: int = 0) -> list[Span]:
    """Return what one row of the data set looks like to training, after truncation and packing.

    Args:
        dataset: an ``SFTDataset``.
        renderer: decodes the tokens.
        index: the row.
    """
    row = dataset[index]
    spans: list[Span] = []
    start = 0
    for segment, size in enumerate(row.get("segment_lengths", [len(row["input_ids"])])):
        labels = row["labels"][start : start + size]
        ids = list(row["input_ids"][start : start + size])
        trained = [False] + [label != IGNORED for label in labels]
        if trained[-1]:
            ids.append(labels[-1])
        else:
            trained.pop()
        spans += _spans(ids, trained, renderer.encoder.decode, segment)
        start += size
    return spans


def _spans(ids: list[int], trained: list[bool], decode: Any, segment: int) -> list[Span]:
    spans, begin, told = [], 0, ""
    for end in range(1, len(ids) + 1):
        if end < len(ids) and trained[end] == trained[begin]:
            continue
        # the text up to here less the text before: a tokenizer may decode a piece by itself without its first space
        whole = decode(ids[:end])
        text = whole[len(told) :] if whole.startswith(told) else decode(ids[begin:end])
        spans.append(Span(text, trained[begin], end - begin, segment))
        begin, told = end, whole
    return spans


def shortened(spans: Sequence[Span], most: int) -> list[Span]:
    """Return spans of at most about ``most`` characters: long ones lose their middle, so that each reply stays visible.

    Args:
        spans: as ``first_sample_view`` returns them.
        most: characters in all.
    """
    if sum(len(span.text) for span in spans) <= most:
        return list(spans)
    room = max(120, most // max(1, len(spans)))
    kept, used = [], 0
    for span in spans:
        if used > most:
            kept.append(replace(span, text=" …", trained=False, tokens=0))
            break
        if len(span.text) > room:
            half = room // 2
            span = replace(span, text=f"{span.text[:half]} … {span.text[-half:]}")
        kept.append(span)
        used += len(span.text)
    return kept


def view_as_text(spans: Sequence[Span]) -> str:
    """Return spans as plain text with the trained parts between ⟦ and ⟧, for logs without colour."""
    parts = []
    for number, span in enumerate(spans):
        if number and span.segment != spans[number - 1].segment:
            parts.append("\n--- next row of the pack ---\n")
        parts.append(f"⟦{span.text}⟧" if span.trained else span.text)
    return "".join(parts)
