"""BLEU-4 and ROUGE of generated replies, by PaddleNLP's metrics on characters, as its fine-tuning scripts do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paddle
from paddlenlp.metrics import BLEU, Rouge1, Rouge2, RougeL

from paddlesft.data.encoding import AS_WRITTEN
from paddlesft.inference.generation import generate
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.training.loss import IGNORED

if TYPE_CHECKING:
    from paddlesft.config import RunConfig
    from paddlesft.data.dataset import SFTDataset

OUTPUT_FILE = "generated_output.json"


class QuickRougeL(RougeL):
    """ROUGE-L with a bit-parallel longest common subsequence (Hyyrö 2004): the same number, in time linear in a text.

    PaddleNLP fills a table cell by cell in Python, which takes seconds for two replies of a thousand characters.
    """

    def lcs(self, string: Sequence[Any], sub: Sequence[Any]) -> float:
        """Return the length of the longest common subsequence."""
        where: dict[Any, int] = {}
        for position, item in enumerate(string):
            where[item] = where.get(item, 0) | 1 << position
        everywhere = (1 << len(string)) - 1
        unmatched = everywhere
        for item in sub:
            hits = unmatched & where.get(item, 0)
            unmatched = ((unmatched + hits) | (unmatched - hits)) & everywhere
        return float(len(string) - bin(unmatched).count("1"))


def text_metrics(replies: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Score replies against references, character by character.

    Args:
        replies: generated texts.
        references: the texts they should be, in the same order.

    Returns:
        ``bleu4``, ``rouge1``, ``rouge2``, ``rougel`` from 0 to 1.
    """
    replies, references = [r.strip() for r in replies], [r.strip() for r in references]
    bleu, rouge_l = BLEU(n_size=4), QuickRougeL()
    for reply, reference in zip(replies, references):
        bleu.add_inst(reply, [reference])
        rouge_l.add_inst(reply, [reference])

    def overlap(metric: Any) -> float:
        common, of = metric.compute(replies, references) if replies else (0, 0)
        return common / of if of else 0.0

    return {
        "bleu4": float(bleu.score()) if any(replies) else 0.0,
        "rouge1": overlap(Rouge1()),
        "rouge2": overlap(Rouge2()),
        "rougel": float(rouge_l.score()) if replies else 0.0,
    }


def prompt_and_reference(row: Mapping[str, Any], stop_token_ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Split a data set's row at its last trained reply.

    Args:
        row: ``input_ids`` and shifted ``labels``.
        stop_token_ids: taken off the reference's end.

    Returns:
        The ids of everything before the reply, and those of the reply. Training and generation share the renderer, so
        the first are the prompt a model is asked with.
    """
    input_ids, labels = list(row["input_ids"]), list(row["labels"])
    end = max(i for i, label in enumerate(labels) if label != IGNORED)
    begin = end
    while begin > 0 and labels[begin - 1] != IGNORED:
        begin -= 1
    reference = labels[begin : end + 1]
    while reference and reference[-1] in stop_token_ids:
        reference.pop()
    return input_ids[: begin + 1], reference


def sampling_options(run_config: RunConfig) -> SamplingOptions:
    """Make generation options from a run's config."""
    config, data = run_config.generation, run_config.data
    return SamplingOptions(
        max_new_tokens=config.max_new_tokens or max(data.max_length - data.src_length, 1),
        min_new_tokens=config.min_new_tokens,
        decode_strategy=config.decode_strategy,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        repetition_penalty=config.repetition_penalty,
        seed=run_config.training.seed,
        stop=tuple(config.stop or ()),
    )


class GenerationEvaluation:
    """Generates a reply to every row of a data set and scores them.

    Args:
        tokenizer: the model's tokenizer.
        options: how tokens are chosen.
        stop_token_ids: ids that end a reply.
        pad_token_id: id that fills shorter prompts.
        batch_size: rows generated at a time.
        output_file: receives ``{"output", "tgt", "src"}`` as a JSON line for each row as it is done.
        on_batch: called with rows done and rows in all.
    """

    def __init__(
        self,
        tokenizer: Any,
        options: SamplingOptions,
        stop_token_ids: Sequence[int],
        pad_token_id: int,
        batch_size: int,
        output_file: Path | None = None,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.stop_token_ids = list(stop_token_ids)
        self.pad_token_id = pad_token_id
        self.batch_size = batch_size
        self.output_file = output_file
        self.on_batch = on_batch

    def __call__(self, model: paddle.nn.Layer, dataset: SFTDataset, prefix: str) -> dict[str, float]:
        """Evaluate a model.

        Args:
            model: bare or with an adapter.
            dataset: unpacked rows.
            prefix: first part of the metrics' names.

        Returns:
            ``{prefix}_bleu4``, ``_rouge1``, ``_rouge2``, ``_rougel``.
        """
        replies: list[str] = []
        references: list[str] = []
        file = self.output_file.open("w", encoding="utf-8") if self.output_file else None
        try:
            for begin in range(0, len(dataset), self.batch_size):
                rows = range(begin, min(begin + self.batch_size, len(dataset)))
                pairs = [prompt_and_reference(dataset[i], self.stop_token_ids) for i in rows]
                generated = generate(
                    model,
                    [prompt for prompt, _ in pairs],
                    self.options,
                    self.stop_token_ids,
                    self.pad_token_id,
                    tokenizer=self.tokenizer,
                    rows=list(rows),
                )
                for (prompt, reference), reply in zip(pairs, generated):
                    replies.append(reply.text)
                    references.append(self._text(reference))
                    if file:
                        line = {"output": reply.text, "tgt": references[-1], "src": self._text(prompt)}
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
                        file.flush()
                if self.on_batch is not None:
                    self.on_batch(len(replies), len(dataset))
        finally:
            if file:
                file.close()
        return {f"{prefix}_{name}": value for name, value in text_metrics(replies, references).items()}

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, **AS_WRITTEN)
