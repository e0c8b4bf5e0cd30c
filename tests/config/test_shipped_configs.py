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
    method = {"pt": (False, True), "sft": (False, False)}.get(path.stem, (True, False))
    assert (run.model.lora, run.model.prefix_tuning) == method
    assert run.training.do_train


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if p.suffix != ".json"], ids=lambda p: p.parent.name + "/" + p.name
)
def test_the_head_of_a_config_shows_its_command_and_its_files_exist(path: Path) -> None:
    head = path.read_text(encoding="utf-8").splitlines()[:6]
    command = f"#     paddlesft train {path.relative_to(REPO).as_posix()}"
    assert any(line.startswith(command) for line in head)
    data = load_run_config(path).data
    for place in [data.dataset_name_or_path, *(data.train_dataset_path or []), *(data.eval_dataset_path or [])]:
        # What is not shipped is said in the head to be the user's to bring.
        assert place is None or (REPO / place).is_file() or "is not part of this project" in "".join(head), place
