"""What each way of quantizing costs SmolLM2-135M-Instruct, measured on rows that calibration has not seen.

    python benchmarks/quantization_quality.py --data path/to/gsm8k
    python benchmarks/quantization_quality.py --only 'gptq*,rtn*' --rows 12  # on the sample that the package ships

Every row is the real model, loaded anew, quantized by the package's own functions (those of `paddlesft quantize`),
evaluated on the answers of held-out rows, and written to disk. The *outlier model* computes the same as the model, but
some channels behind each norm are larger by a power of two: what large models have and small ones lack. The table goes
to the screen and between two markers in docs/quantize.md, together with the machine, the data and the command;
`--json` keeps every figure. With `--only`, rows that the JSON file has from the same data are kept in the table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import paddle  # noqa: E402
from pages import write_page  # noqa: E402
from train_speed import machine  # noqa: E402

from paddlesft.checkpoints.verify import logits_of, prompt_ids  # noqa: E402
from paddlesft.config import load_run_config  # noqa: E402
from paddlesft.data.collate import Collator  # noqa: E402
from paddlesft.data.dataset import SFTDataset, build_dataset  # noqa: E402
from paddlesft.models.load import load_model, save_model_directory  # noqa: E402
from paddlesft.quantization.layer_walk import decoder_layers  # noqa: E402
from paddlesft.quantization.quantize_model import quantize_model  # noqa: E402
from paddlesft.quantization.recipe import WEIGHTS, Recipe  # noqa: E402
from paddlesft.quantization.report import logit_difference  # noqa: E402
from paddlesft.quantization.smoothing import PieceSearch  # noqa: E402
from paddlesft.training.evaluation import evaluate_sums, evaluation_batches  # noqa: E402
from paddlesft.training.run_renderer import RunRenderer, read_renderer  # noqa: E402

PAGE = REPO / "docs" / "quantize.md"
BEGIN, END = "<!-- figures of quantization_quality.py -->", "<!-- end of the figures of quantization_quality.py -->"
SAMPLES = REPO / "paddlesft" / "data" / "samples"
BATCH = 8
STEPS = 4  # batches that the ranges of activations are learnt from
OUTLIERS, FACTOR = 6, 32.0  # channels behind each norm, and by how much they are larger
FLOAT = "float32"


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        label: as the table has it.
        recipe: what is done; None: nothing.
        outliers: to the outlier model.
    """

    label: str
    recipe: Recipe | None
    outliers: bool = False


def int4(group_size: int, **how: Any) -> Recipe:
    return Recipe("weight_only_int4", group_size=group_size, **how)


def a8w8(**how: Any) -> Recipe:
    return Recipe(steps=STEPS, shift_steps=STEPS, smooth_steps=STEPS, **how)


SEARCH = PieceSearch()
METHODS = {
    "float32": Method("float32", None),
    "wint8": Method("WINT8", Recipe("weight_only_int8")),
    "rtn": Method("WINT4, nearest", int4(0)),
    "gptq": Method("WINT4, GPTQ", int4(0, gptq=True)),
    "rtn-128": Method("WINT4, nearest, groups of 128", int4(128)),
    "gptq-128": Method("WINT4, GPTQ, groups of 128", int4(128, gptq=True)),
    "awq-128": Method("WINT4, AWQ, groups of 128", int4(128, awq=True)),
    "awq-clip-128": Method("WINT4, AWQ and clipping, groups of 128", int4(128, awq=True, clip=True)),
    "gptq-clip-128": Method("WINT4, GPTQ and clipping, groups of 128", int4(128, gptq=True, clip=True)),
    "rtn-64": Method("WINT4, nearest, groups of 64", int4(64)),
    "gptq-64": Method("WINT4, GPTQ, groups of 64", int4(64, gptq=True)),
    "nf4": Method("nf4, blocks of 64", Recipe("nf4")),
    "nf4-double": Method("nf4, blocks of 64, double quantization", Recipe("nf4", double_quantization=True)),
    "fp4": Method("fp4, blocks of 64", Recipe("fp4")),
    "a8w8": Method("A8W8", a8w8()),
    "shift": Method("A8W8, shift", a8w8(shift=True)),
    "smooth": Method("A8W8, smooth", a8w8(smooth=True)),
    "smooth-all": Method("A8W8, smooth on all linears", a8w8(smooth=True, smooth_all=True)),
    "shift-smooth-all": Method(
        "A8W8, shift and smooth on all linears", a8w8(shift=True, shift_all=True, smooth=True, smooth_all=True)
    ),
    "search": Method("A8W8, smooth with piecewise search", a8w8(smooth=True, search=SEARCH)),
    "llm.int8": Method("LLM.int8()", Recipe("llm.int8")),
    "outlier-float32": Method("float32", None, True),
    "outlier-a8w8": Method("A8W8", a8w8(), True),
    "outlier-shift": Method("A8W8, shift", a8w8(shift=True), True),
    "outlier-smooth": Method("A8W8, smooth", a8w8(smooth=True), True),
    "outlier-smooth-all": Method("A8W8, smooth on all linears", a8w8(smooth=True, smooth_all=True), True),
    "outlier-search": Method("A8W8, smooth with piecewise search", a8w8(smooth=True, search=SEARCH), True),
    "outlier-llm.int8": Method("LLM.int8()", Recipe("llm.int8"), True),
}


def main() -> int:
    options = parse()
    chosen = [key for key in METHODS if any(fnmatch(key, wanted) for wanted in options.only or "*")]
    chosen = [key for key in chosen if METHODS[key].recipe is None or METHODS[key].recipe.quant_type in WEIGHTS]
    if not chosen:
        print(f"--only: no method fits {','.join(options.only)}; there are {', '.join(METHODS)}.", file=sys.stderr)
        return 2
    begin = time.perf_counter()
    setting = Setting(options)
    print(setting.about(), flush=True)
    found = setting.kept(options.json)
    if "float32" not in found:
        found["float32"] = setting.measure(METHODS["float32"])
    for key, row in measured(setting, [key for key in chosen if key != "float32"]):
        found[key] = row
        show(METHODS[key], row, found["float32"])
        if options.json:
            options.json.write_text(json.dumps({"about": setting.identity, "rows": found}, indent=1), encoding="utf-8")
    found = {key: found[key] for key in METHODS if key in found}
    print(f"{(time.perf_counter() - begin) / 60:.1f} minutes")
    text = "\n".join([setting.about(), "", *table(found)])
    print(f"\n{text}")
    if not options.dry:
        write_page(PAGE, text, BEGIN, END)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory with gsm8k's train.jsonl and test.jsonl")
    parser.add_argument("--calibration-rows", type=int, default=64)
    parser.add_argument("--rows", type=int, default=64, help="held-out rows")
    parser.add_argument("--only", type=lambda text: text.split(","), help="methods, e.g. 'gptq*,outlier-smooth'")
    parser.add_argument("--jobs", type=int, default=1, help="methods at a time, each on one thread")
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    parser.add_argument("--dry", action="store_true", help="leave docs/quantize.md as it is")
    options = parser.parse_args()
    files = data_files(options.data)
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        parser.error(f"missing: {', '.join(missing)}. --data takes the directory that holds gsm8k's two files.")
    return options


def measured(setting: Setting, keys: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure methods, several at a time where ``--jobs`` says so, and yield each when it is done."""
    if setting.options.jobs == 1:
        yield from ((key, setting.measure(METHODS[key])) for key in keys)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that start now
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(setting.options.jobs, context, _start, (setting.options,)) as pool:
        tasks = {pool.submit(_measure, key): key for key in keys}
        for task in as_completed(tasks):
            yield tasks[task], task.result()


def _start(options: argparse.Namespace) -> None:
    global _setting
    _setting = Setting(options)


def _measure(key: str) -> dict[str, Any]:
    return _setting.measure(METHODS[key])


def data_files(data: Path | None) -> tuple[Path, Path]:
    """Return the file to calibrate on and the held-out one."""
    if data is None:
        return SAMPLES / "identity.jsonl", SAMPLES / "identity_eval.jsonl"
    return data / "train.jsonl", data / "test.jsonl"


class Setting:
    """The model and the rows that all methods share.

    Args:
        options: see ``parse``.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        train, held_out = data_files(options.data)
        run_config = load_run_config(None, [
            "model_name_or_path=embedded:smollm2", f"train_dataset_path={train}", f"eval_dataset_path={held_out}",
            f"max_train_samples={options.calibration_rows}", f"max_eval_samples={options.rows}",
            f"per_device_train_batch_size={BATCH}", "max_length=512", "output_dir=unused", "do_eval=true",
            "do_train=false",
        ])  # fmt: skip
        self.rendering: RunRenderer = read_renderer(run_config, print)
        renderer = self.rendering.renderer
        collator = self.collator = Collator(renderer.pad_token_id)
        rows: SFTDataset = build_dataset(run_config.data, renderer, "quant")[0]
        starts = range(0, len(rows), BATCH)
        self.batches = [collator([rows[i] for i in range(a, min(a + BATCH, len(rows)))]) for a in starts]
        self.rows: SFTDataset = build_dataset(run_config.data, renderer, "eval")[0]
        self.logits: list[np.ndarray] | None = None
        tokens = sum(int(np.asarray(batch["attention_mask"]).sum()) for batch in self.batches)
        scored = sum(sum(label != -100 for label in self.rows[i]["labels"]) for i in range(len(self.rows)))
        name = "gsm8k" if options.data else "the sample of the package"
        held_out = f"{len(self.rows)} {'test' if options.data else 'other'} rows ({scored} tokens)"
        self.identity = (
            f"SmolLM2-135M-Instruct (from its 4-bit GGUF) and {name}: calibrated on {len(rows)} training rows "
            f"({tokens} tokens; A8W8 on {min(len(rows), STEPS * BATCH)} rows), measured on the answers of {held_out}."
        )

    def about(self) -> str:
        """Say what was measured, where and how."""
        given = [f"--{key} {value}" for key, value in (("rows", self.options.rows),) if value != 64]
        given += ["--data DIRECTORY_OF_GSM8K"] if self.options.data else []
        given += [f"--jobs {self.options.jobs}"] if self.options.jobs > 1 else []
        threads = 1 if self.options.jobs > 1 else int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
        speed = f"{threads} thread{'s' if threads > 1 else ''} for a method"
        return (
            f"    .venv/bin/python benchmarks/quantization_quality.py {' '.join(given)}".rstrip()
            + f"\n\n{self.identity} {machine().split(', load')[0]}; {speed}."
        )

    def kept(self, path: Path | None) -> dict[str, dict[str, Any]]:
        """Return rows that a run on the same data has left behind."""
        if self.options.only is None or path is None or not path.is_file():
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["rows"] if content["about"] == self.identity else {}

    def measure(self, method: Method) -> dict[str, Any]:
        """Quantize the model by one method and measure what it is then."""
        model = load_model(self.rendering.base, dtype=FLOAT)
        prompts = prompt_ids(self.rendering.tokenizer, model.config.vocab_size)
        if self.logits is None:
            self.logits = logits_of(model, prompts)
        if method.outliers:
            put_outliers(model)
            check_equal(self.logits, logits_of(model, prompts))
        begin, layers = time.process_time(), []
        if method.recipe is not None:
            layers = quantize_model(model, self.batches, method.recipe)
        seconds = time.process_time() - begin
        sums = evaluate_sums(model, evaluation_batches(self.rows, self.collator, BATCH))
        error, same = logit_difference(self.logits, logits_of(model, prompts))
        with tempfile.TemporaryDirectory() as scratch:
            save_model_directory(model, self.rendering.tokenizer_directory, Path(scratch), source="benchmark")
            disk = sum(path.stat().st_size for path in Path(scratch).glob("*.safetensors"))
        metrics = sums.metrics("eval")
        return {
            "perplexity": metrics["eval_perplexity"],
            "accuracy": metrics["eval_accuracy"],
            "logit_error": error,
            "same_first_choice": same,
            "disk": disk,
            "seconds": seconds,
            "layers": [asdict(one) for one in sorted(layers, key=lambda one: -one.error)[:10]],
            "damped": sum(one.damping > 0.01 for one in layers),
            "mean_layer_error": float(np.mean([one.error for one in layers])) if layers else 0.0,
        }


@paddle.no_grad()
def put_outliers(model: paddle.nn.Layer, channels: int = OUTLIERS, factor: float = FACTOR, seed: int = 0) -> None:
    """Enlarge some channels behind the norms of a Llama's decoder layers; the layers that follow make up for it.

    Args:
        model: its logits stay as they are, to the last bit where ``factor`` is a power of two.
        channels: how many behind each norm; the same in all layers, as in large models.
        factor: by how much.
        seed: of the choice of channels.
    """
    chosen = np.random.default_rng(seed).permutation(model.config.hidden_size)[:channels]
    wide = np.ones(model.config.hidden_size, dtype=np.float32)
    wide[chosen] = factor
    wide = paddle.to_tensor(wide)
    for layer in decoder_layers(model).values():
        attention, mlp = layer.self_attn, layer.mlp
        followers = {
            layer.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
            layer.post_attention_layernorm: (mlp.gate_proj, mlp.up_proj),
        }
        for norm, linears in followers.items():
            norm.weight.set_value(norm.weight * wide)
            for linear in linears:
                linear.weight.set_value(linear.weight / wide.unsqueeze(1))


def check_equal(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> None:
    """Stop where the outlier model is another function."""
    difference = max(float(np.abs(a - b).max()) for a, b in zip(wanted, found))
    if not difference <= 1e-5 * max(float(np.abs(a).max()) for a in wanted):
        sys.exit(f"The outlier model computes other logits: largest difference {difference:.2e}.")


def show(method: Method, row: dict[str, Any], base: dict[str, Any]) -> None:
    """Print a row as soon as it is measured."""
    name = f"{'outlier model: ' if method.outliers else ''}{method.label}"
    print(
        f"{name:55} perplexity {row['perplexity']:9.4f} {row['perplexity'] / base['perplexity'] - 1:+9.2%}  logits "
        f"{row['logit_error']:7.2%}  {row['seconds']:6.1f} s of CPU",
        flush=True,
    )


HEAD = (
    "| | perplexity | change | token accuracy | logit error | same first choice | MB on disk | CPU seconds |",
    "|---|---|---|---|---|---|---|---|",
)


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of the two tables."""
    lines = list(HEAD)
    for key, row in found.items():
        if METHODS[key].outliers and "the outlier model" not in " ".join(lines):
            lines += [
                "",
                f"The same for the outlier model: {OUTLIERS} of the channels behind each norm are {FACTOR:.0f} times "
                "as large, and the weights that follow are as much smaller, so that it computes the same logits.",
                "",
                *HEAD,
            ]
        change = f"{row['perplexity'] / found['float32']['perplexity'] - 1:+.2%}" if METHODS[key].recipe else ""
        lines.append(
            f"| {METHODS[key].label} | {row['perplexity']:.4f} | {change} | {row['accuracy']:.2%} "
            f"| {row['logit_error']:.2%} | {row['same_first_choice']:.1%} | {row['disk'] / 1e6:.1f} "
            f"| {row['seconds']:.0f} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
