"""Whole runs on a tiny model with a real tokenizer: what is read, told and left behind."""

import json
from pathlib import Path

import pytest

from paddlesft.config import load_run_config
from paddlesft.errors import CheckpointError, ConfigError, DataError
from paddlesft.inference.loading import load_for_inference
from paddlesft.models import read_provenance
from paddlesft.training.checkpoint_saving import complete_checkpoints
from paddlesft.training.run import TrainResult, train
from paddlesft.training.run_log import read_log
from paddlesft.tuning.lora import adapter_weights
from tests.training.small_runs import Recorder

METHODS = {
    "lora": ["lora=true"],
    "prefix": ["prefix_tuning=true", "num_prefix_tokens=4", "learning_rate=3e-2"],
    "full": [],
}


class Listener(Recorder):
    def data(self, split, report) -> None:
        self.events.append((f"data {split}", report))

    def first_sample(self, spans) -> None:
        self.events.append(("first sample", spans))

    def plan(self, plan) -> None:
        assert self.saved_config.is_file()  # before the first step
        self.events.append(("plan", plan))

    def resolved_config(self, run_config) -> None:
        self.saved_config = Path(run_config.training.output_dir) / "run_config.yaml"
        self.events.append(("resolved config", run_config))

    def resumed(self, checkpoint, step, differences) -> None:
        self.events.append(("resumed", (checkpoint.name, step, [d.what for d in differences])))

    def finished(self, result) -> None:
        self.events.append(("finished", result))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.json, dev.json and test.json with 12, 4 and 3 rows."""
    path = tmp_path_factory.mktemp("data")
    for name, first, count in (("train", 0, 12), ("dev", 12, 4), ("test", 16, 3)):
        rows = [{"src": f"What is {i} plus one?", "tgt": f"It is {i + 1}."} for i in range(first, first + count)]
        (path / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    return path


def go(out: Path, model: Path, data: Path, *overrides: str, observer=None) -> TrainResult:
    keys = [f"model_name_or_path={model}", f"dataset_name_or_path={data}", f"output_dir={out}", "learning_rate=1e-2",
            "per_device_train_batch_size=4", "logging_steps=1", "max_length=64", "src_length=32", "do_train=true",
            "save_strategy=no"]  # fmt: skip
    return train(load_run_config(None, [*keys, *overrides]), observer)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_a_directory_the_next_verb_can_use(
    method: str, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    listener = Listener()
    result = go(tmp_path / "run", tiny_llama, data, *METHODS[method], "num_train_epochs=3", "do_eval=true",
                "evaluation_strategy=epoch", observer=listener)  # fmt: skip
    assert (result.method, result.steps, result.base) == (method, 9, tiny_llama)
    kinds = [kind for kind, _ in listener.events]
    order = ["resolved config", "data train", "data eval", "first sample", "plan", "log", "evaluation", "finished"]
    assert [kind for i, kind in enumerate(kinds) if kind in order and kind not in kinds[:i]] == order
    plan = listener.of("plan")[0]
    assert (plan.steps, plan.steps_per_epoch, plan.rows, plan.rows_per_step) == (9, 3, 12, 4)
    assert 0 < plan.trained_parameters <= plan.parameters and (plan.trained_parameters == plan.parameters) == (
        method == "full"
    )
    shown = listener.of("first sample")[0]
    assert "".join(span.text for span in shown if span.trained) == "It is 1.<|im_end|>"
    losses = [record["loss"] for record in read_log(tmp_path / "run") if record["kind"] == "train"]
    assert len(losses) == 9 and losses[-1] < losses[0]
    metrics = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert metrics["train_loss"] == pytest.approx(result.metrics["train_loss"])
    assert metrics["eval_loss"] == [r["eval_loss"] for r in read_log(tmp_path / "run") if r["kind"] == "eval"][-1]
    assert json.loads((tmp_path / "run" / "eval_results.json").read_text())["eval_accuracy"] >= 0
    assert len([kind for kind in kinds if kind == "evaluation"]) == 3  # the last one is not done twice
    assert (tmp_path / "run" / "loss.png").is_file() and (tmp_path / "run" / "trainer_state.json").is_file()
    provenance = read_provenance(tmp_path / "run")
    assert provenance["kind"] == ("model" if method == "full" else "adapter")
    assert provenance["base"]["path"] == str(tiny_llama) and provenance["base"]["fingerprint"].startswith("sha256:")
    assert not [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]
    where = {"lora": {"lora_path": tmp_path / "run"}, "prefix": {"prefix_path": tmp_path / "run"}}.get(method)
    loaded = load_for_inference(None, **where) if where else load_for_inference(tmp_path / "run")
    from paddlesft.data.collate import Collator
    from paddlesft.data.dataset import build_dataset
    from paddlesft.training.evaluation import evaluate_sums, evaluation_batches

    config = load_run_config(None, [str(tmp_path / "run" / "run_config.yaml")])
    dev, _ = build_dataset(config.data, loaded.renderer, "eval")
    found = evaluate_sums(loaded.model, evaluation_batches(dev, Collator(0), 8))
    assert found.loss == pytest.approx(metrics["eval_loss"], abs=1e-5)


def test_only_evaluating_and_predicting(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    keys = ["do_train=false", "do_eval=true", "do_predict=true", "eval_with_do_generation=true",
            "save_generation_output=true", "max_new_tokens=4"]  # fmt: skip
    result = go(tmp_path / "run", tiny_llama, data, *keys)
    assert result.steps == 0
    for prefix in ("eval", "test"):
        for name in ("loss", "perplexity", "accuracy", "bleu4", "rouge1", "rouge2", "rougel"):
            assert f"{prefix}_{name}" in result.metrics
    rows = [json.loads(line) for line in (tmp_path / "run" / "generated_output.json").read_text().splitlines()]
    assert [row["tgt"] for row in rows] == ["It is 17.", "It is 18.", "It is 19."]
    assert "What is 16 plus one?" in rows[0]["src"] and all(isinstance(row["output"], str) for row in rows)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_packing_and_length_grouping_run(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    packed = Listener()
    go(
        tmp_path / "a",
        tiny_llama,
        data,
        "lora=true",
        "packing=true",
        "max_length=256",
        "src_length=64",
        observer=packed,
    )
    assert packed.of("plan")[0].rows < 12
    grouped = Listener()
    go(tmp_path / "b", tiny_llama, data, "lora=true", "length_grouping=true", observer=grouped)
    assert grouped.of("plan")[0].rows == 12


def test_a_run_goes_on_by_itself_and_guards_what_it_goes_on_from(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    keys = ["lora=true", "num_train_epochs=2", "save_strategy=steps", "save_steps=2"]
    go(tmp_path / "whole", tiny_llama, data, *keys)
    go(tmp_path / "run", tiny_llama, data, *keys)
    for path in complete_checkpoints(tmp_path / "run")[1:]:
        for file in path.rglob("*.json"):
            file.unlink()  # as if the machine had died
    with pytest.raises(CheckpointError) as error:
        go(tmp_path / "run", tiny_llama, data, *keys, "lora_rank=4", "logging_steps=2")
    assert "lora_rank: 8" in (tmp_path / "run" / "run_config.yaml").read_text()  # a refusal changes nothing
    assert "lora_rank: 8 in the checkpoint, 4 now" in str(error.value) and "logging_steps" not in str(error.value)
    listener = Listener()
    result = go(tmp_path / "run", tiny_llama, data, *keys, "save_total_limit=9", observer=listener)
    assert result.resumed_from == tmp_path / "run" / "checkpoint-2"
    assert listener.of("resumed") == [("checkpoint-2", 2, ["save_total_limit"])]
    assert any("the newest complete checkpoint" in text for text in listener.of("message"))
    assert sorted(text.split(":")[0] for text in listener.of("warning")) == [
        "passed over checkpoint-4", "passed over checkpoint-6"
    ]  # fmt: skip
    curves = [[(r["step"], r["loss"]) for r in read_log(tmp_path / name)] for name in ("whole", "run")]
    assert curves[0] == curves[1] and len(curves[0]) == 6
    whole, run = (adapter_weights(tmp_path / name) for name in ("whole", "run"))
    assert whole.keys() == run.keys() and all((whole[name] == run[name]).all() for name in whole)


def test_differences_can_be_overridden_and_a_fresh_start_asked_for(
    tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    keys = ["lora=true", "max_steps=4", "save_strategy=steps", "save_steps=2"]
    go(tmp_path / "run", tiny_llama, data, *keys)
    listener = Listener()
    go(tmp_path / "run", tiny_llama, data, *keys[:1], "max_steps=6", *keys[2:], "allow_resume_differences=true",
       observer=listener)  # fmt: skip
    assert listener.of("resumed")[0][:2] == ("checkpoint-4", 4) and "max_steps" in listener.of("resumed")[0][2]
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(DataError):
        go(tmp_path / "run", tiny_llama, data / "nowhere", "overwrite_output_dir=true")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before  # nothing goes before the run can work
    fresh = Listener()
    result = go(tmp_path / "run", tiny_llama, data, "max_steps=2", "overwrite_output_dir=true", observer=fresh)
    assert result.resumed_from is None and "starting anew; removed" in fresh.of("message")[0]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "lora_config.json" not in names and "model.safetensors" in names and "checkpoint-4" not in names


def test_what_cannot_work_is_said_before_anything_is_loaded(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the base model's own directory"):
        go(tiny_llama, tiny_llama, data)
    with pytest.raises(ConfigError, match="less than one step"):
        go(tmp_path / "a", tiny_llama, data, "num_train_epochs=0.1")
    config = load_run_config(None, [f"model_name_or_path={tiny_llama}", f"dataset_name_or_path={data}", "output_dir=x"])
    config.training.do_train = False
    with pytest.raises(ConfigError, match="Nothing to do: set do_train, do_eval or do_predict"):
        train(config)


def test_a_run_with_its_own_template_and_system_prompt_hands_both_on(
    tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    go(
        tmp_path / "a",
        tiny_llama,
        data,
        "lora=true",
        "max_steps=1",
        f"chat_template={template}",
        "system_prompt=Be brief.",
    )
    loaded = load_for_inference(None, lora_path=tmp_path / "a")
    from paddlesft.data.conversation import Message

    ids = loaded.renderer.render_prompt([Message("user", "Hi", None)])
    assert loaded.tokenizer.decode(ids) == "[system] Be brief.<|im_end|>\n[user] Hi<|im_end|>\n[assistant] "
    go(tmp_path / "b", tiny_llama, data, "max_steps=1", "chat_template=alpaca")
    assert read_provenance(tmp_path / "b")["chat_template"] == "alpaca"
