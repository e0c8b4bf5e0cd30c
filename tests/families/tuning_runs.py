"""Training runs of tiny models, of every family by every method: a few rows, learned until they are reproduced."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from paddlesft.config import load_run_config
from paddlesft.inference.generation import Generated, generate
from paddlesft.inference.loading import Loaded, load_for_inference
from paddlesft.inference.prediction import read_rows
from paddlesft.inference.prompts import fit_prompt
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.models.families import FAMILIES
from paddlesft.training.events import Observer
from paddlesft.training.run import TrainResult, train
from paddlesft.training.run_log import read_log

# Prompts of very different lengths; replies with a space in front of a word, digits, another script, a full stop.
OTHER_ROWS = {
    "What is the weather today?": "I can help you with that.",
    "The quick brown fox": "jumps over the lazy dog, twice.",
    "add 4 and 4, then write a response that completes the request": "The answer is 8.",
    "你好": "你好，世界。",
}
# What full fine-tuning learns: among other things the replies of OTHER_ROWS, but to other prompts. The adapters, which
# leave the output layer as it is, then have to steer a model that knows the words, as in practice.
FIRST_ROWS = {
    "What is the capital of France?": "Paris is the capital.",
    "Say hello, please.": "Hello there!",
    "Below is an instruction that describes a task: add 2 and 3": "5",
    "你好，今天天气怎么样？": "我很好，谢谢。",
    **dict(zip(("one", "two", "three", "four"), OTHER_ROWS.values())),
}
UNSEEN_ROWS = {
    "The capital of France?": "It is Paris, and the weather is fine.",
    "add 2 and 2": "4",
    "What can you do?": "Describe the lazy dog and the quick brown fox. 你好！",
}
PROMPT_TOKENS = 128

METHODS = {
    "full": ["learning_rate=5e-3", "max_steps=50"],
    "lora": ["lora=true", "lora_rank=8", "learning_rate=5e-3", "max_steps=40"],
    "prefix": ["prefix_tuning=true", "num_prefix_tokens=16", "learning_rate=2e-1", "max_steps=80"],
}
COMMON = [
    "do_train=true", "save_strategy=no", "logging_steps=10", "per_device_train_batch_size=8", "max_length=192",
    f"src_length={PROMPT_TOKENS}", "lr_scheduler_type=constant", "weight_decay=0", "seed=5",
]  # fmt: skip


def cases(methods: Iterable[str] = METHODS) -> list[tuple[str, str]]:
    """Every family with each of the methods that its row of the family table claims."""
    return [(f.name, method) for f in FAMILIES for method in methods if method != "prefix" or f.prefix_tuning]


def write_rows(path: Path, rows: dict[str, str]) -> Path:
    """Write rows as a data file."""
    lines = [json.dumps({"src": src, "tgt": tgt}, ensure_ascii=False) for src, tgt in rows.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def run(base: Path, data: Path, output_dir: Path, *keys: str, observer: Observer | None = None) -> TrainResult:
    """Train as a user does, with ``keys`` on top of what all runs here have in common."""
    places = [f"model_name_or_path={base}", f"train_dataset_path={data}", f"output_dir={output_dir}"]
    return train(load_run_config(None, [*places, *COMMON, *keys]), observer)


@dataclass
class TuningRun:
    """A finished run.

    Attributes:
        method: full, lora or prefix.
        base: the model it started from.
        rows: what it learned, prompt -> reply.
        data: the same as a file.
        unseen: a data file of ``UNSEEN_ROWS``, on which it was evaluated at the end.
        result: what ``train`` returned.
    """

    method: str
    base: Path
    rows: dict[str, str]
    data: Path
    unseen: Path
    result: TrainResult

    @property
    def directory(self) -> Path:
        """The model's or adapter's directory."""
        return self.result.output_dir

    @property
    def losses(self) -> list[float]:
        """The logged training losses."""
        return [record["loss"] for record in read_log(self.directory) if record["kind"] == "train"]

    @cached_property
    def loaded(self) -> Loaded:
        """The tuned model, loaded as the inference verbs do."""
        return load_for_inference(self.directory)

    def prompts(self) -> list[list[int]]:
        """The token ids of the learned rows' prompts."""
        return prompts_of(self.loaded, self.data)

    def generate(self, options: SamplingOptions, numbers: Iterable[int] | None = None) -> list[Generated]:
        """Answer the rows of these numbers (all of them), in one batch."""
        prompts = self.prompts()
        numbers = range(len(prompts)) if numbers is None else numbers
        return answers(self.loaded, [prompts[i] for i in numbers], options, list(numbers))


def prompts_of(loaded: Loaded, data: Path) -> list[list[int]]:
    """Return the token ids of the prompts of a data file's rows."""
    return [list(fit_prompt(loaded.renderer, row.prompt, PROMPT_TOKENS).ids) for row in read_rows(data)]


def answers(
    loaded: Loaded, prompts: list[list[int]], options: SamplingOptions, rows: list[int] | None = None
) -> list[Generated]:
    """Generate replies in one batch."""
    return generate(
        loaded.model,
        prompts,
        options,
        loaded.stop_token_ids,
        loaded.pad_token_id,
        tokenizer=loaded.tokenizer,
        rows=rows,
    )


def tune(base: Path, method: str, directory: Path) -> TuningRun:
    """Train a model by one method.

    Args:
        base: a random model for full fine-tuning, one that has learned ``FIRST_ROWS`` for the adapters.
        method: full, lora or prefix.
        directory: receives data and result.
    """
    learned = FIRST_ROWS if method == "full" else OTHER_ROWS
    directory.mkdir()
    data, unseen = write_rows(directory / "rows.json", learned), write_rows(directory / "unseen.json", UNSEEN_ROWS)
    keys = [*METHODS[method], "do_eval=true", f"eval_dataset_path={unseen}"]
    return TuningRun(method, base, learned, data, unseen, run(base, data, directory / "run", *keys))
