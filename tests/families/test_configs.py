"""Every config of a family runs as it is on the family's tiny model; those of several cards: test_divided_configs.py.

What is overridden: model, data, output directory, the number of steps, and the device, since a tiny model on a GPU
would prove nothing that it does not on the CPU.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from paddlesft.config import load_run_config
from paddlesft.models.families import FAMILIES, family_named
from paddlesft.models.load import load_model
from paddlesft.models.quantized.decoder_linears import decoder_linears
from paddlesft.models.quantized.directory import quantized_layers
from paddlesft.quantization.run import quantize
from paddlesft.training.run import train
from tests.tiny_families import write_tiny_family

REPO = Path(__file__).resolve().parents[2]
CONFIGS = {f"{family.name}-{path.stem}": path
           for family in FAMILIES for path in sorted((REPO / "configs" / family.name).glob("*.yaml"))
           if "# what the cards share" not in path.read_text(encoding="utf-8")}  # fmt: skip
each_config = pytest.mark.parametrize("path", CONFIGS.values(), ids=CONFIGS)
EMBEDDED = "smollm2"  # a model, not a family: Llama is its family
QUANTIZED = [family.name for family in FAMILIES if not family.quantization_refusal]
JSON_KINDS = ("ptq", "gptq", "wint8", "qlora")
JSON_CONFIGS = {f"{name}-{kind}": REPO / "configs" / name / f"{kind}.json"
                for name in (*QUANTIZED, EMBEDDED) for kind in JSON_KINDS}  # fmt: skip
# |l' - l| / |l| with the float model's logits l: rounding moves weights by 1 percent in 8 bits and by 10 to 20 in 4, of
# which a random model of 64 units averages little away.
LOGIT_ERROR = {"ptq": 0.3, "gptq": 0.6, "wint8": 0.03}
each_json_config = pytest.mark.parametrize("path", JSON_CONFIGS.values(), ids=JSON_CONFIGS)

COUNTRIES = ["Peru", "Chile", "Japan", "Kenya", "Spain", "Italy", "Egypt", "Ghana"]
ROWS = [{"src": f"Question {i}: where is {name}?", "tgt": f"{name} is on the map."}
        for i, name in enumerate(4 * COUNTRIES)]  # fmt: skip
GPU_ONLY = re.compile(r"bf16 is for GPUs\. If this machine has none, the run is in float32\.$")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as the configs want it: train.json with 32 rows and dev.json with 2."""
    path = tmp_path_factory.mktemp("data")
    for name, rows in (("train.json", ROWS), ("dev.json", ROWS[:2])):
        (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model_for(tiny_family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Config -> the tiny model of its family; one that has learned as many positions as the config's rows have."""
    root = tmp_path_factory.mktemp("models")

    @cache
    def long_one(name: str, length: int) -> Path:
        return write_tiny_family(name, root / name, **{family_named(name).context_key: length})

    def find(path: Path) -> Path:
        name = "llama" if path.parent.name == EMBEDDED else path.parent.name
        if family_named(name).positions_end:
            return long_one(name, load_run_config(path).data.max_length)
        return tiny_family(name)

    return find


@cache
def linears(model: Path) -> int:
    """How many Linear layers the decoder layers of a float model have."""
    return len(decoder_linears(load_model(model)))


def positions(path: Path) -> str:
    """The values of the keys on which a JSON config and sft.yaml beside it have to agree."""
    run = load_run_config(path)
    return f"{run.data.src_length} {run.data.max_length} {run.training.bf16} {run.data.dataset_name_or_path}"


def head(path: Path) -> list[str]:
    """The comment at the beginning of a config, without its number signs."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").removeprefix(" ") for line in lines[: lines.index("")]]


def card_memory(path: Path) -> tuple[list[tuple[str, str, float]], float]:
    """What a config's head says about memory: (what, product, GB) for each part, and the sum."""
    text = "\n".join(head(path))
    parts = re.findall(r"^ {4}(\S.{33})(.{28}) *(\d+\.\d)$", text, re.MULTILINE)
    values = [(what.strip(), product.strip(), float(size)) for what, product, size in parts]
    total = re.search(r"^ {4}together +(\d+\.\d)  ", text, re.MULTILINE)
    return values, float(total[1])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_has_a_config_for_each_method_that_it_offers(family) -> None:
    names = {path.stem for path in CONFIGS.values() if path.parent.name == family.name}
    assert names >= {"sft", "lora"}
    assert ("pt" in names) == family.prefix_tuning


@each_config
def test_the_config_trains_the_tiny_model(
    path: Path, data: Path, model_for: Callable[[Path], Path], tmp_path: Path
) -> None:
    overrides = [
        f"model_name_or_path={model_for(path)}",
        f"dataset_name_or_path={data}",
        f"output_dir={tmp_path / 'out'}",
    ]
    run = load_run_config(path, [*overrides, "max_steps=2", "device=cpu"])
    result = train(run)
    assert result.steps == 2
    assert result.metrics["train_loss"] > 0
    assert result.metrics["eval_loss"] > 0
    expected = {"sft": "model.safetensors", "lora": "lora_model_state.pdparams", "pt": "prefix_model_state.pdparams"}
    assert (tmp_path / "out" / expected[path.stem.split("_")[0]]).is_file()


def test_a_config_runs_on_several_devices(data: Path, tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    """As the heads say, but for two processes on the CPU. One of them is left without rows in the last step."""
    keys = [f"model_name_or_path={tiny_family('chatglm')}", f"dataset_name_or_path={data}", "packing=false",
            f"output_dir={tmp_path / 'out'}", "max_train_samples=17", "num_train_epochs=1", "device=cpu",
            "per_device_train_batch_size=1", "gradient_accumulation_steps=4"]  # fmt: skip
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(tmp_path / "log")]
    done = subprocess.run(
        [sys.executable, *launch, "llm/finetune.py", "configs/chatglm/pt.yaml", *keys],
        cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    logs = [log.read_text(encoding="utf-8")[-3000:] for log in (tmp_path / "log").glob("workerlog.*")]
    assert done.returncode == 0, "\n".join(logs)
    assert "step 3/3" in done.stdout and "the result is the best checkpoint" in done.stdout
    assert (tmp_path / "out" / "prefix_model_state.pdparams").is_file()


@each_config
def test_the_method_is_that_of_the_file_and_rows_are_packed_only_where_that_is_exact(path: Path) -> None:
    run = load_run_config(path)
    method = {"pt": (False, True), "sft": (False, False)}.get(path.stem, (True, False))
    assert (run.model.lora, run.model.prefix_tuning) == method
    assert run.training.learning_rate == {"sft": 3e-5, "pt": 3e-2}.get(path.stem, 3e-4)
    assert family_named(path.parent.name).packing or not run.data.packing
    assert run.training.bf16 and run.training.recompute
    assert [notice for notice in run.notices if not GPU_ONLY.search(notice)] == []


@each_config
def test_the_head_says_how_to_launch_on_one_card_and_on_many(path: Path) -> None:
    name = path.relative_to(REPO).as_posix()
    lines = head(path)
    assert f"    paddlesft train {name}" in lines
    assert f"    python -m paddle.distributed.launch llm/finetune.py {name}" in lines
    assert "./data is yours" in " ".join(lines)
    out = load_run_config(path).training.output_dir
    assert any(line.strip().startswith(("Then: paddlesft chat", "paddlesft chat")) and out in line for line in lines)


@each_config
def test_the_model_comes_from_where_it_can_be_read(path: Path) -> None:
    """Bare hub names are Hugging Face's, whose layout has to be read; PaddleNLP's copies are on BOS."""
    name = load_run_config(path).model.model_name_or_path
    if name.startswith("models/"):
        assert f'.save_pretrained("{name}")' in "\n".join(head(path))
    elif not name.startswith("bos:"):
        assert family_named(path.parent.name).hf_layout is not None


def test_every_json_config_is_looked_at() -> None:
    assert set((REPO / "configs").glob("*/*.json")) == set(JSON_CONFIGS.values())


@each_json_config
def test_a_json_config_runs_on_the_tiny_model(
    path: Path, data: Path, model_for: Callable[[Path], Path], tmp_path: Path
) -> None:
    keys = [f"model_name_or_path={model_for(path)}", f"output_dir={tmp_path / 'out'}", "device=cpu"]
    keys += [f"dataset_name_or_path={data}"] + ["eval_dataset_path=null"] * (path.parent.name == EMBEDDED)
    if path.stem == "qlora":
        result = train(load_run_config(path, [*keys, "max_steps=2"]))
        assert result.steps == 2 and result.metrics["eval_loss"] > 0
        told = json.loads((tmp_path / "out" / "paddlesft.json").read_text(encoding="utf-8"))["base_quantization"]
        assert (told["format"], told["double_quantization"]) == ("nf4", True)
    else:
        report = quantize(load_run_config(path, keys))
        how = {"ptq": "a8w8", "gptq": "weight_only_int4", "wint8": "weight_only_int8"}
        assert report.quant_type == how[path.stem] and ("GPTQ" in report.method) == (path.stem == "gptq")
        assert report.before.quality and report.after.quality  # measured on rows of its own, no notice needed
        model = load_model(tmp_path / "out")
        assert len(quantized_layers(model)) == len(report.layers) == linears(model_for(path)) > 0
        assert 0 < report.logit_error < LOGIT_ERROR[path.stem]


@each_json_config
def test_a_json_config_is_that_of_its_model(path: Path) -> None:
    run, trained = load_run_config(path), load_run_config(path.with_name("sft.yaml"))
    assert [notice for notice in run.notices if not GPU_ONLY.search(notice)] == []
    assert run.training.output_dir == trained.training.output_dir.removesuffix("_sft") + f"_{path.stem}"
    base = trained.model.model_name_or_path
    if path.stem == "qlora":
        assert (run.model.lora, run.model.weight_quantize_algo, run.model.lora_rank) == (True, "nf4", 8)
        assert run.model.model_name_or_path == base
    else:
        embedded = path.parent.name == EMBEDDED
        assert run.model.model_name_or_path == (base if embedded else f"./{trained.training.output_dir}")
    assert positions(path) == positions(path.with_name("sft.yaml"))
    assert run.data.eval_dataset_path or run.data.dataset_name_or_path == "./data"  # which has a dev.json


def product(text: str) -> float:
    """``28 x 2048 x 12 B`` in bytes; a number may have G behind it."""
    value = 1.0
    for factor in text.removesuffix(" B").split(" x "):
        value *= float(factor.removesuffix(" G")) * (1e9 if factor.endswith(" G") else 1)
    return value


@each_config
def test_the_memory_in_the_head_is_the_sum_of_its_parts_and_they_follow_the_keys(path: Path) -> None:
    parts, total = card_memory(path)
    run = load_run_config(path)
    for what, text, size in parts:
        assert size == (round(product(text) / 1e9, 1) if text else 1.0), what
    assert total == pytest.approx(sum(size for *_, size in parts), abs=0.05)
    text = "\n".join(head(path))
    assert f"rows of {run.data.max_length} tokens" in text
    bytes_per_weight = 2 if run.model.lora or run.model.prefix_tuning else 18
    assert parts[0][1].endswith(f" G x {bytes_per_weight} B")
    rows = run.training.per_device_train_batch_size
    tokens = f"{rows} x {run.data.max_length}" if rows > 1 else str(run.data.max_length)
    assert f" x {tokens} x " in parts[1][1]
    card = re.search(r"together .* a card of (\d+) GB", text)
    assert total <= 0.96 * float(card[1])


@pytest.mark.parametrize("file", ["sft.yaml", "lora.yaml", "pt.yaml", "sft_pp.yaml", "ptq.json", "gptq.json"])
def test_paddlenlps_names_of_its_samples_load_our_files(file: str) -> None:
    ours = REPO / "configs" / "llama" / file
    theirs = ours.with_name(f"{ours.stem}_argument.json")
    run = load_run_config(theirs)
    assert run.flat() == load_run_config(ours).flat()
    assert run.path == ours
    assert f"{theirs}: there is no file of this name; {ours} is read in its place." in run.notices
