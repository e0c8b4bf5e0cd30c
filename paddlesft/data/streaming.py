"""Conversations read one after the other, never all at once, with sources mixed on the way (``lazy``)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from paddlesft.data.conversation import Conversation, Message, Source
from paddlesft.data.problems import Problem
from paddlesft.data.reading import iterate_conversations
from paddlesft.data.sources import DataSource


def stream_conversations(
    sources: list[DataSource],
    format: str = "auto",
    column_map: dict[str, str] | None = None,
    mix_strategy: str = "concat",
    seed: int = 42,
    limit: int | None = None,
) -> Iterator[Conversation | Problem]:
    """Yield the rows of several sources through the `datasets` library's streams.

    Args:
        sources: files with their shares.
        format: as in ``read_conversations``.
        column_map: as in ``read_conversations``.
        mix_strategy: as in ``mixed_order``; "random" draws like "interleave_under", as a stream cannot be drawn from
            at any place.
        seed: of the mixing.
        limit: stop after this many rows.
    """
    import datasets

    streams = [
        datasets.IterableDataset.from_generator(
            _serialised,
            gen_kwargs={"paths": [str(file) for file in source.files], "format": format, "column_map": column_map},
        )
        for source in sources
    ]
    shares = [source.probability for source in sources]
    if len(streams) == 1:
        stream = streams[0]
    elif mix_strategy == "concat":
        stream = datasets.concatenate_datasets(streams)
    else:
        stream = datasets.interleave_datasets(
            streams,
            probabilities=None if any(share is None for share in shares) else shares,
            seed=seed,
            stopping_strategy="all_exhausted" if mix_strategy == "interleave_over" else "first_exhausted",
        )
    for row in islice(stream, limit):
        yield _restored(row["row"])


def _serialised(paths: list[str], format: str, column_map: dict[str, str] | None) -> Iterator[dict[str, str]]:
    for path in paths:
        for entry in iterate_conversations(Path(path), format, column_map):
            yield {"row": json.dumps(asdict(entry), ensure_ascii=False)}


def _restored(text: str) -> Conversation | Problem:
    value = json.loads(text)
    source = Source(**value.pop("source"))
    if "messages" in value:
        messages = [Message(**message) for message in value["messages"]]
        return Conversation(messages, value["tools"], source, tuple(value["unread"]))
    return Problem(source, **value)
