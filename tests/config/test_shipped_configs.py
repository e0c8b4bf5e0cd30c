"""Every shipped config resolves without a word about old names, and its head shows the command that runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddlesft.config import load_run_config

REPO = Path(__file__).resolve().parents[2]
CONFIGS = sorted(p for p in (REPO / "configs").rglob("*") if p.suffix in (".json", ".yaml", ".yml"))


def test_there_are_configs() -> None:
    names = {p.relative_to(REPO / "configs").as_posix() for p in CONFIGS}
    assert names >= {f"llama/{kind}.json" for kind in ("lora", "sft", "pt")}
    assert names >= {f"smollm2/{kind}.yaml" for kind in ("lora", "sft", "pt")}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(REPO / "configs").as_posix())
def test_config_resolves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PADDLE_TRAINERS_NUM", raising=False)
    run = load_run_config(path)
    assert [
        n for n in run.notices if not n.endswith("is for GPUs. If this machine has none, the run is in float32.")
    ] == []
    method = {"demo": (True, False), "lora": (True, False), "pt": (False, True), "sft": (False, False)}[path.stem]
    assert (run.model.lora, run.model.prefix_tuning) == method
    assert run.training.do_train


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if p.suffix != ".json"], ids=lambda p: p.parent.name + "/" + p.name
)
def test_the_head_of_a_config_shows_its_command_and_its_files_exist(path: Path) -> None:
    head = path.read_text(encoding="utf-8").splitlines()[:6]
    assert f"#     paddlesft train {path.relative_to(REPO).as_posix()}" in head
    run = load_run_config(path)
    for data in [run.data.dataset_name_or_path, *(run.data.eval_dataset_path or [])]:
        assert (REPO / data).is_file(), data
