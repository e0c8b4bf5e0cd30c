"""A config error answers at once: paddle is not imported for it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

SECONDS = 1.5


def test_a_config_error_answers_before_paddle_is_imported(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"model_name_or_path": "embedded:smollm2",\n "learning_rat": 1}', encoding="utf-8")
    times = []
    for _ in range(3):  # the best of three: other work on the machine is not the loader's
        begin = time.perf_counter()
        done = run_cli("train", path)
        times.append(time.perf_counter() - begin)
        assert done.returncode == 2
        assert f"{path}:2: unknown key 'learning_rat'. Did you mean 'learning_rate'?" in done.stderr
        assert "Traceback" not in done.stderr
    assert min(times) < SECONDS, times


def test_the_whole_room_loads_without_anything_heavy() -> None:
    code = (
        "import sys; import paddlesft.config, paddlesft.config.verbs, paddlesft.config.reference as r; "
        "r.help_text(paddlesft.config.RUN_GROUPS); "
        "paddlesft.config.load_run_config(None, ['model_name_or_path=m', 'output_dir=o', 'dataset_name_or_path=d']); "
        "heavy = {'paddle', 'paddlenlp', 'numpy', 'datasets', 'rich', 'transformers'} & set(sys.modules); "
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


def test_an_error_leaves_paddle_unimported(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("lora: yes\n", encoding="utf-8")
    code = (
        "import sys; from paddlesft.cli.main import main; "
        f"code = main(['train', {str(path)!r}]); "
        "sys.exit(9 if {'paddle', 'paddlenlp'} & set(sys.modules) else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 2, done.stderr
    assert 'bad.yaml:1: lora: found "yes" (text); allowed: true or false.' in done.stderr
