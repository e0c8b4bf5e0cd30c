"""Every key and every sample file that users bring from PaddleNLP and PaddleFormers is understood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddlesft.config import RUN_GROUPS, load_run_config
from paddlesft.config.loader import read_arguments
from paddlesft.config.renamed import TRAINING_OLD_KEYS
from paddlesft.config.serve import ServeConfig
from paddlesft.config.verbs import MergeLoraConfig, PredictConfig
from tests.config.upstream_keys import SAMPLE_NAMES, TABLES, sample

PREDICTOR = {"PaddleNLP 2.6.1 llm/predictor.py PredictorArgument", "PaddleNLP 2.6.1 llm/predictor.py ModelArgument"}
SERVERS = {
    "PaddleNLP 2.6.1 llm/flask_server.py ServerArgument",
    "PaddleFormers 1.2.0 cli/hparams/server_args.py ServerArguments",
}
KEYS = [
    (table, key, default) for table, keys in TABLES.items() if table not in PREDICTOR for key, default in keys.items()
]

# Defaults of other tools that ask for something this version refuses, or that contradict their own type.
REFUSED_DEFAULTS = {
    ("PaddleFormers 1.2.0 cli/hparams/finetuning_args.py FinetuningArguments", "decay_steps"),  # null for an int
}


def read(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return read_arguments(RUN_GROUPS, path, (), TRAINING_OLD_KEYS)


@pytest.mark.parametrize(("table", "key", "default"), KEYS, ids=[f"{t.split()[-1]}.{k}" for t, k, _ in KEYS])
def test_every_key_is_known_and_its_default_is_accepted(table: str, key: str, default: object, tmp_path: Path) -> None:
    loaded = read(tmp_path / "their.json", {key: default})
    assert not [p for p in loaded.problems if "unknown key" in p]
    if (table, key) in REFUSED_DEFAULTS:
        assert loaded.problems
    elif default is not None:
        assert loaded.problems == []
    if key not in loaded.origins:
        assert loaded.notices or loaded.problems, f"{key} was dropped without a word"


@pytest.mark.parametrize("table", sorted(PREDICTOR))
def test_every_key_of_the_predictor_is_known(table: str, tmp_path: Path) -> None:
    path = tmp_path / "their.json"
    content = {k: v for k, v in TABLES[table].items() if v is not None}
    path.write_text(json.dumps(content), encoding="utf-8")
    loaded = read_arguments({"predict": PredictConfig}, path)
    assert loaded.problems == []
    assert loaded.instances["predict"].top_p == 0.7


@pytest.mark.parametrize("table", [*sorted(PREDICTOR), *sorted(SERVERS)])
def test_every_key_of_the_servers_and_their_predictor_is_known_to_serve(table: str, tmp_path: Path) -> None:
    path = tmp_path / "their.json"
    content = {k: v for k, v in TABLES[table].items() if v is not None}
    path.write_text(json.dumps(content), encoding="utf-8")
    loaded = read_arguments({"serve": ServeConfig}, path)
    assert loaded.problems == []
    silent = [key for key in content if key not in loaded.origins and not any(key in text for text in loaded.notices)]
    assert silent == []


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_sample_files_load(name: str, tmp_path: Path) -> None:
    path = tmp_path / "argument.json"
    content = sample(name)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    run = load_run_config(path)
    assert run.model.model_name_or_path == content["model_name_or_path"]
    for key in ("tensor_parallel_degree", "pipeline_parallel_degree", "sharding_parallel_degree"):
        assert getattr(run.training, key) == content.get(key, -1)
    for key in ("do_ptq", "ptq_step", "smooth", "smooth_step", "smooth_piecewise_search", "do_gptq", "gptq_step"):
        if key in content:
            assert getattr(run.quantization, key) == content[key]
    assert run.training.do_train == content.get("do_train", False)
    if run.training.do_train:
        assert run.training.learning_rate == content["learning_rate"]
    assert any("fp16 is for GPUs" in n or "bf16 is for GPUs" in n for n in run.notices)
    assert not [n for n in run.notices if "has no effect while" in n]


def test_the_fault_of_the_ptq_sample_is_read_as_its_default(tmp_path: Path) -> None:
    content = {k: v for k, v in sample("llama/ptq_argument.json").items() if k != "do_ptq"}
    loaded = read(tmp_path / "ptq.json", content)
    assert loaded.problems == []
    assert loaded.instances["quantization"].smooth_k_piece == 3
    line = (tmp_path / "ptq.json").read_text().splitlines().index(' "smooth_k_piece": true,') + 1
    why = "the samples of PaddleNLP 2.6 hold true for this number; 3 is its default"
    assert f"{tmp_path}/ptq.json:{line}: smooth_k_piece: true is read as 3 ({why})." in loaded.notices


PADDLEFORMERS_LORA = """\
### data
train_dataset_type: messages
eval_dataset_type: messages
train_dataset_path: ./data/sft/train.jsonl,./data/sft/more.jsonl
train_dataset_prob: "0.8,0.2"
eval_dataset_path: ./data/sft/dev.jsonl
eval_dataset_prob: "1.0"
max_seq_len: 8192
packing: true
mix_strategy: concat
template_backend: custom
template: qwen3

### model
model_name_or_path: Qwen/Qwen3-0.6B-Base
_attn_implementation: flashmask

### finetuning
# base
stage: SFT
fine_tuning: LoRA
lora_rank: 8
lora_alpha: -1
seed: 23
do_train: true
do_eval: true
per_device_eval_batch_size: 1
per_device_train_batch_size: 1
num_train_epochs: 1
max_steps: -1
eval_steps: 100
evaluation_strategy: steps
save_steps: 100
save_strategy: steps
logging_steps: 1
gradient_accumulation_steps: 4
logging_dir: ./vdl_log
output_dir: ./checkpoints/qwen3-sft-lora
disable_tqdm: true
eval_accumulation_steps: 16

# train
warmup_steps: 20
learning_rate: 1.0e-4

# performance
tensor_model_parallel_size: 1
pipeline_model_parallel_size: 1
sharding: stage1
recompute_granularity: full
recompute_method: uniform
recompute_num_layers: 1
bf16: true
fp16_opt_level: O2
save_checkpoint_format: flex_checkpoint
load_checkpoint_format: flex_checkpoint
"""


def test_a_paddleformers_file_loads_with_a_word_about_each_foreign_key(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("PADDLE_TRAINERS_NUM", raising=False)
    path = tmp_path / "lora.yaml"
    path.write_text(PADDLEFORMERS_LORA, encoding="utf-8")
    run = load_run_config(path)
    assert (run.model.lora, run.model.prefix_tuning, run.model.lora_alpha) == (True, False, 16.0)
    assert run.model.use_flash_attention is True
    assert run.data.train_dataset_path == ["./data/sft/train.jsonl", "./data/sft/more.jsonl"]
    assert run.data.train_dataset_prob == [0.8, 0.2]
    assert (run.data.max_length, run.data.packing, run.data.eval_packing) == (8192, True, True)
    assert (run.training.recompute, run.training.sharding) == (True, "stage1")
    spoken = {n.split(": ")[1].split()[0] for n in run.notices}
    assert spoken >= {
        "eval_dataset_prob", "max_seq_len", "template_backend", "template", "_attn_implementation", "stage",
        "fine_tuning", "lora_alpha", "tensor_model_parallel_size", "pipeline_model_parallel_size", "recompute_method",
        "recompute_num_layers", "save_checkpoint_format", "load_checkpoint_format", "eval_accumulation_steps",
    }  # fmt: skip
    lines = [int(n.split(":")[1]) for n in run.notices]
    assert lines == sorted(lines)


@pytest.mark.parametrize("old", ["merge_lora_model_path", "output_path", "merge_model_path"])
def test_every_name_of_the_merged_directory_is_known(old: str) -> None:
    loaded = read_arguments({"merge": MergeLoraConfig}, None, ["--lora_path", "a", f"--{old}", "out"])
    assert loaded.problems == []
    assert loaded.instances["merge"].merge_model_path == "out"
    assert bool(loaded.notices) == (old != "merge_model_path")
