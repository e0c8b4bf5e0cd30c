import json
import re
from pathlib import Path

import pytest

from paddlesft.errors import CheckpointError
from paddlesft.training import resume
from paddlesft.training.checkpoint_saving import new_checkpoint
from tests.training.small_runs import small_config


def identity(*overrides: str, base: str = "sha256:base", data: str = "sha256:data", ranks: int = 1) -> dict:
    config = small_config(*overrides).flat()
    return resume.run_identity(config, base, data, {"data": ranks}, max_steps=40, steps_per_epoch=10)


def checkpoint(output_dir: Path, step: int) -> Path:
    output_dir.mkdir(exist_ok=True)
    with new_checkpoint(output_dir, step) as scratch:
        (scratch / resume.IDENTITY).write_text(json.dumps(identity()))
    return output_dir / f"checkpoint-{step}"


def test_the_same_run_has_no_differences() -> None:
    assert resume.compare(identity(), identity()) == []
    assert resume.compare(json.loads(json.dumps(identity())), identity()) == []


@pytest.mark.parametrize(
    "key",
    ["lora_rank=16", "seed=7", "max_length=512", "per_device_train_batch_size=2", "gradient_accumulation_steps=3",
     "learning_rate=1e-3", "lora_dropout=0.1", "packing=true", "chat_template=qwen", "num_train_epochs=9",
     "lora_target_modules=all", "truncation=drop", "optim=adamw_mini", "weight_decay=0.1"],
)  # fmt: skip
def test_what_decides_the_result_breaks_the_run(key: str) -> None:
    before = identity("lora=true")
    found = [d for d in resume.compare(before, identity("lora=true", key)) if d.what == key.split("=")[0]]
    assert len(found) == 1 and found[0].breaks
    with pytest.raises(CheckpointError, match=re.escape(found[0].what)):
        resume.refuse_breaking(Path("run/checkpoint-20"), found, override=False)
    resume.refuse_breaking(Path("run/checkpoint-20"), found, override=True)


@pytest.mark.parametrize(
    "key",
    ["logging_steps=3", "save_steps=7", "save_total_limit=2", "output_dir=elsewhere", "recompute=true",
     "max_new_tokens=9", "per_device_eval_batch_size=3"],
)  # fmt: skip
def test_what_does_not_decide_it_is_only_said(key: str) -> None:
    found = resume.compare(identity(), identity(key))
    assert [(d.what, d.breaks) for d in found] == [(key.split("=")[0], False)]
    resume.refuse_breaking(Path("run/checkpoint-20"), found, override=False)


def test_model_and_data_are_compared_by_content_not_by_path() -> None:
    moved = identity("model_name_or_path=moved", "train_dataset_path=moved")
    assert all(not d.breaks for d in resume.compare(identity(), moved))
    for other, what in ((identity(base="sha256:other"), "base model"), (identity(data="sha256:x"), "training data")):
        first = resume.compare(identity(), other)[0]
        assert (first.what, first.breaks) == (what, True)


def test_another_number_of_processes_breaks_the_run_if_its_steps_have_other_rows() -> None:
    assert resume.compare(identity(), identity(ranks=2)) == [
        resume.Difference("data parallel processes", 1, 2, breaks=True)
    ]
    one, two = identity("gradient_accumulation_steps=4"), identity("gradient_accumulation_steps=2", ranks=2)
    found = [(d.what, d.saved, d.now, d.breaks) for d in resume.compare(one, two)]
    assert found == [("data parallel processes", 1, 2, False), ("gradient_accumulation_steps", 4, 2, False)]


def test_another_layout_of_the_same_batch_is_only_said() -> None:
    before, after = identity(), identity("tensor_parallel_degree=2", "sharding=stage1")
    after["layout"]["tensor"] = 2
    found = resume.compare(before, after)
    assert {d.what for d in found} == {"tensor parallel processes", "tensor_parallel_degree", "sharding"}
    assert not any(d.breaks for d in found)


def test_parts_of_ranks_fit_their_own_layout_only() -> None:
    saved = identity("unified_checkpoint=false", "tensor_parallel_degree=2")
    saved["layout"]["tensor"] = 2
    path = Path("run/checkpoint-20")
    resume.refuse_parts_of_another_layout(path, saved, saved)
    more_readers = {**saved, "layout": {**saved["layout"], "data": 2}}
    resume.refuse_parts_of_another_layout(path, saved, more_readers)  # which read the same files
    whole = {**saved, "config": {**saved["config"], "unified_checkpoint": True}}
    resume.refuse_parts_of_another_layout(path, whole, identity())
    with pytest.raises(CheckpointError) as error:
        resume.refuse_parts_of_another_layout(path, saved, identity("sharding=stage2"))
    text = str(error.value)
    assert "tensor 2, now 1; sharding stage '', now 'stage2'" in text and "would be lost" in text
    assert "unified_checkpoint: true from now on" in text
    command = "paddlesft merge-shards --model_name_or_path run/checkpoint-20 --output_path NEW_DIRECTORY"
    assert command in text
    assert text.endswith("NEW_DIRECTORY and another output_dir.")
    sharded = identity("unified_checkpoint=false", "sharding=stage1")
    sharded["layout"]["sharding"] = 2
    with pytest.raises(CheckpointError, match=r"fresh optimizer: ignore_load_lr_and_optim: true\.$"):
        resume.refuse_parts_of_another_layout(path, sharded, identity())
    resume.refuse_parts_of_another_layout(path, sharded, identity("ignore_load_lr_and_optim=true"))


def test_all_nodes_have_to_see_the_same_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    resume.agree_on_checkpoint("run/checkpoint-20", "run")  # alone
    monkeypatch.setattr(resume.dist, "get_world_size", lambda: 2)
    others = ("two", "checkpoint-20")
    monkeypatch.setattr(resume.dist, "all_gather_object", lambda found, own: found.extend([others, own]))
    resume.agree_on_checkpoint("run/checkpoint-20", "run")
    with pytest.raises(CheckpointError, match=r"The nodes do not see the same checkpoint in run: two: checkpoint-20; .*"
                       r": none\. .*copy the checkpoint's directory to every node"):  # fmt: skip
        resume.agree_on_checkpoint(None, "run")


def test_the_refusal_lists_everything_and_names_the_way_out() -> None:
    differences = resume.compare(identity(), identity("seed=7", "max_length=512", "logging_steps=3", base="sha256:b"))
    with pytest.raises(CheckpointError) as error:
        resume.refuse_breaking(Path("run/checkpoint-20"), differences, override=False)
    text = str(error.value)
    assert "seed: 42 in the checkpoint, 7 now" in text and "max_length: 2048 in the checkpoint, 512 now" in text
    assert "base model: 'sha256:base' in the checkpoint, 'sha256:b' now" in text and "logging_steps" not in text
    assert "allow_resume_differences: true" in text and "overwrite_output_dir: true" in text


def test_keys_that_only_one_program_version_knows_do_not_disturb_when_unused() -> None:
    before = identity()
    before["config"]["old_key"] = None
    after = identity()
    after["config"]["new_key"] = False
    assert resume.compare(before, after) == []
    after["config"]["new_key"] = 5
    assert [(d.what, d.breaks) for d in resume.compare(before, after)] == [("new_key", True)]


def test_every_key_called_harmless_exists() -> None:
    known = set(small_config().flat())
    gone = sorted((resume.HARMLESS | resume.COMPARED_BY_CONTENT | resume.LAYOUT_KEYS) - known)
    assert gone == [], "take them off the list"


def test_the_newest_complete_checkpoint_is_taken_and_others_are_said(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert resume.find_checkpoint(out, None, False) == (None, [])
    checkpoint(out, 5)
    newest = checkpoint(out, 10)
    (out / ".checkpoint-15.incomplete").mkdir()
    (out / "checkpoint-20").mkdir()
    (out / ".checkpoint-3.incomplete").mkdir()  # older than what is taken: not worth a word
    for wanted in (None, True, "true"):
        found, passed_over = resume.find_checkpoint(out, wanted, False)
        assert found == newest
        assert [path.name for path, _ in passed_over] == [".checkpoint-15.incomplete", "checkpoint-20"]
    assert resume.find_checkpoint(out, None, True)[0] is None
    assert resume.find_checkpoint(out, str(out / "checkpoint-5"), False)[0] == out / "checkpoint-5"


def test_a_named_checkpoint_has_to_be_there_and_complete(tmp_path: Path) -> None:
    checkpoint(tmp_path / "run", 5)
    with pytest.raises(CheckpointError, match=r"checkpoint-6 is not a directory\. Complete checkpoints beside it: ch"):
        resume.find_checkpoint(tmp_path / "run", str(tmp_path / "run" / "checkpoint-6"), False)
    (tmp_path / "run" / "checkpoint-7").mkdir()
    with pytest.raises(CheckpointError, match=r"checkpoint-7 is not a complete checkpoint: it has no complete.json"):
        resume.find_checkpoint(tmp_path / "run", str(tmp_path / "run" / "checkpoint-7"), False)
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        resume.find_checkpoint(tmp_path / "empty", True, False)


def test_other_content_is_not_mixed_with_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"content that a new run would mix with: thesis\.txt"):
        resume.find_checkpoint(tmp_path, None, False)
    assert resume.find_checkpoint(tmp_path, None, True) == (None, [])
    out = tmp_path / "died-early"
    (out / ".checkpoint-5.incomplete").mkdir(parents=True)
    (out / "run_config.yaml").write_text("")
    (out / "train_log.jsonl").write_text("")
    assert resume.find_checkpoint(out, None, False)[0] is None
    checkpoint(out, 5)
    with pytest.raises(CheckpointError, match="checkpoint-5"):
        resume.find_checkpoint(out, "false", False)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        resume.find_checkpoint(tmp_path / "file", None, False)


def test_a_checkpoint_without_identity_is_not_resumed(tmp_path: Path) -> None:
    with new_checkpoint(tmp_path, 4) as scratch:
        (scratch / "weights").write_text("")
    with pytest.raises(CheckpointError, match="it was not written by paddlesft train"):
        resume.read_identity(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / resume.IDENTITY).write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        resume.read_identity(tmp_path / "checkpoint-4")
