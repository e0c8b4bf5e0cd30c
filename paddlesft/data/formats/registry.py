"""The formats we read, and which one a file has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import ModuleType

from paddlesft.data.containers import Row
from paddlesft.data.formats import alpaca, columns, erniekit, messages, paddlenlp, sharegpt
from paddlesft.errors import DataError

FORMATS: dict[str, ModuleType] = {
    module.NAME: module for module in (messages, sharegpt, paddlenlp, erniekit, alpaca, columns)
}
# other tools' names for the same thing
FORMAT_ALIASES = {"openai": "messages", "chat": "messages", "src_tgt": "paddlenlp", "conversations": "sharegpt"}


def format_named(name: str) -> ModuleType:
    """Return the format module of a declared format.

    Raises:
        DataError: no such format.
    """
    key = FORMAT_ALIASES.get(name, name)
    if key not in FORMATS:
        raise DataError(f"Unknown data format {name!r}; allowed: auto, {', '.join(FORMATS)}.")
    return FORMATS[key]


def detect(rows: Sequence[Row]) -> ModuleType:
    """Return the one format that all of ``rows`` have.

    Args:
        rows: the first rows of a file.

    Raises:
        DataError: rows of two formats, or of none; says which keys were found and which format is nearest.
    """
    for row in rows:
        if _is_preference(row):
            raise DataError(
                f"{row.source}: found a row with the keys {_keys(row)}: preference pairs. Supervised fine-tuning needs "
                "one reply for each prompt; allowed: the same rows with only the preferred reply."
            )
    votes: Counter[str] = Counter()
    first: dict[str, Row] = {}
    unknown = [row for row in rows if not _claimants(row)]
    for row in rows:
        for name in _claimants(row):
            votes[name] += 1
            first.setdefault(name, row)
    for row in rows:
        several = _claimants(row)
        if len(several) > 1:
            raise DataError(
                f"{row.source}: this row fits more than one format ({', '.join(several)}); its keys are "
                f"{_keys(row)}. Declare the one to use with train_dataset_type={several[0]} (eval_dataset_type for "
                "evaluation data)."
            )
    if len(votes) > 1 and set(votes) == {"paddlenlp", "erniekit"}:
        return FORMATS["erniekit"]  # erniekit rows may leave system and label out
    if len(votes) > 1:
        shown = "; ".join(f"{name} at {first[name].source} with the keys {_keys(first[name])}" for name in votes)
        raise DataError(
            f"The file mixes formats: {shown}. Split it into one file for each format and give both, separated by a "
            "comma, as train_dataset_path."
        )
    if not votes:
        raise DataError(_no_format(unknown[0]))
    return FORMATS[next(iter(votes))]


def _claimants(row: Row) -> list[str]:
    named = [name for name, module in FORMATS.items() if name != "columns" and module.claims(row.value)]
    if named:
        return named
    return ["columns"] if columns.claims(row.value) else []


def _is_preference(row: Row) -> bool:
    keys = set(row.value)
    pairs = ({"chosen", "rejected"}, {"chosen_response", "rejected_response"}, {"response", "sort"})
    return any(pair <= keys for pair in pairs)


def _keys(row: Row) -> str:
    return ", ".join(repr(key) for key in row.value) or "none"


def _no_format(row: Row) -> str:
    keys = set(row.value)
    head = f"{row.source}: found a row with the keys {_keys(row)}, which is no format that can be trained on. "
    if keys & {"text", "content"}:
        return head + "Text without a question and a reply is pretraining data; it has no reply to train on."
    (key, value), *others = row.value.items() or [("", None)]
    if not others and isinstance(value, list) and value and isinstance(value[0], dict):
        return head + f"The rows seem to stand inside {key!r}: save that list as the file's whole content."
    nearest = max(FORMATS.values(), key=lambda module: len(keys & set(module.KEYS)))
    if not keys & set(nearest.KEYS):
        nearest = columns
    allowed = "; ".join(f"{name}: {module.EXAMPLE}" for name, module in FORMATS.items())
    return (
        head + f"The nearest format is {nearest.NAME}: {nearest.EXAMPLE}. If two columns hold question and answer, "
        f'name them: column_map={{"question": "…", "answer": "…"}}. Formats: {allowed}.'
    )
