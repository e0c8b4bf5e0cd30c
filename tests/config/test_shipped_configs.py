"""Every shipped config resolves without a word about old names, and its head shows the command that runs it.

The configs of the model families, and all those about quantization (JSON, which has no head), are looked at and run in
``tests/families/test_configs.py``, the other ones of the embedded model here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddlesft.config import load_run_config
from paddlesft.models.families import FAMILIES
from tests.config.upstream_keys import sample

REPO = Path(__file__).resolve().parents[2]
CONFIGS = sorted(p for p in (REPO / "configs").rglob("*") if p.suffix in (".yaml", ".yml"))


def test_there_are_configs() -> None:
    names = {p.relative_to(REPO / "configs").as_posix() for p in CONFIGS}
    assert names >= {f"llama/{kind}.yaml" for kind in ("lora", "sft", "pt")}
    assert names >= {f"smollm2/{kind}.yaml" for kind in ("lora", "sft", "pt")}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(REPO / "configs").as_posix())
def test_config_resolves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PADDLE_TRAINERS_NUM", raising=False)
    run = load_run_config(path)
    assert [
        n for n in run.notices if not n.endswith("is for GPUs. If this machine has none, the run is in float32.")
    ] == []
    method = {"pt": (False, True), "sft": (False, False)}.get(path.stem.split("_")[0], (True, False))
    assert (run.model.lora, run.model.prefix_tuning) == method
    assert run.training.do_train


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(REPO / "configs").as_posix())
def test_the_head_of_a_config_shows_its_command_and_its_files_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    head = text[: text.index("\n\n")].splitlines()
    command = f"#     paddlesft train {path.relative_to(REPO).as_posix()}"
    assert any(line.startswith(command) for line in head[:6])
    data = load_run_config(path).data
    for place in [data.dataset_name_or_path, *(data.train_dataset_path or []), *(data.eval_dataset_path or [])]:
        # What is not shipped is said in the head to be the user's to bring.
        assert place is None or (REPO / place).is_file() or "is not part of this project" in "".join(head), place


FAMILY_NAMES = {family.name for family in FAMILIES}
OWN = [p.relative_to(REPO / "configs").as_posix() for p in CONFIGS if p.parent.name not in FAMILY_NAMES]
RUNS = [*OWN, "upstream lora", "upstream pt"]


@pytest.mark.parametrize("name", RUNS)
def test_every_config_trains_a_tiny_model(name: str, tiny_llama: Path, tmp_path: Path, monkeypatch) -> None:
    """Two steps with everything else as the file says; PaddleNLP's own samples are run on the CPU as well."""
    from paddlesft.training.run import train

    monkeypatch.chdir(REPO)  # the configs name their data from here
    path = REPO / "configs" / name
    if name.startswith("upstream"):
        path = tmp_path / "argument.json"
        path.write_text(json.dumps(sample(f"llama/{name.split()[1]}_argument.json")), encoding="utf-8")
    samples = REPO / "paddlesft" / "data" / "samples"
    overrides = [f"model_name_or_path={tiny_llama}", f"output_dir={tmp_path / 'out'}", "max_steps=2"]
    overrides += ["device=cpu", "max_length=96", "src_length=48", "max_train_samples=8", "max_eval_samples=4"]
    if load_run_config(path).data.train_dataset_path:
        overrides.append(f"train_dataset_path={samples / 'identity.jsonl'}")
    else:
        overrides.append(f"dataset_name_or_path={samples / 'identity.jsonl'}")
    overrides.append(f"eval_dataset_path={samples / 'identity_eval.jsonl'}")
    run = load_run_config(path, overrides)
    result = train(run)
    assert result.steps == 2
    assert result.metrics["train_loss"] > 0
    assert load_run_config(tmp_path / "out" / "run_config.yaml").flat() == run.flat()
