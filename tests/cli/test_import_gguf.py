"""``paddlesft import-gguf`` as a user runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.models.tiny_architectures import ARCHITECTURES, write_converted
from tests.models.tiny_gguf import tiny_weights, write_tiny_gguf


def test_import(run_cli: Callable, tmp_path: Path) -> None:
    file = write_tiny_gguf(tmp_path / "m.gguf", tiny_weights(), "Q8_0")
    done = run_cli("import-gguf", file, tmp_path / "out", "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    assert "Imported tiny in" in done.stdout and "(F32, Q8_0)" in done.stdout
    assert "2 layers, hidden 32, 4 heads (2 key/value), vocabulary 12, context 128" in done.stdout
    assert "stored as   bfloat16" in done.stdout and (tmp_path / "out" / "config.json").is_file()
    again = run_cli("import-gguf", file, tmp_path / "out")
    assert again.returncode == 2 and "a directory that is not empty" in again.stderr
    assert run_cli("import-gguf", "--overwrite", file, tmp_path / "out").returncode == 0


def test_families_name_their_sizes_differently(run_cli: Callable, tmp_path: Path) -> None:
    for name, sizes in (
        ("bloom", "2 layers, hidden 32, 4 heads, vocabulary 12\n"),
        ("gpt2", "2 layers, hidden 32, 4 heads, vocabulary 12, context 1024\n"),
    ):
        file = write_converted(tmp_path / f"{name}.gguf", name, ARCHITECTURES[name].weights())
        done = run_cli("import-gguf", file, tmp_path / name)
        assert done.returncode == 0 and sizes in done.stdout, done.stdout + done.stderr


def test_errors_are_messages(run_cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no")
    for arguments, message in (
        ([], "FILE and DIR are needed; found: nothing. usage: paddlesft import-gguf FILE DIR"),
        ([tmp_path / "x.gguf", tmp_path / "out"], "is not a GGUF file: it begins with b'no'"),
        (["embedded:llama", tmp_path / "out"], "no embedded model 'llama'. Allowed: embedded:smollm2"),
        ([tmp_path / "x.gguf", tmp_path / "out", "--dtyp", "float16"], "dtype"),
    ):
        done = run_cli("import-gguf", *arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()
    assert "usage: paddlesft import-gguf FILE DIR" in run_cli("import-gguf", "--help").stdout
