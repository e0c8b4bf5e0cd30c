"""Fixtures shared by all rooms: the real model, a tiny random model, the command line, the torch oracle."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

from tests.worker_processes import (  # noqa: F401  (hooks; before paddlesft sets the number of threads)
    pytest_collection_modifyitems,
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
    pytest_xdist_setupnodes,
)

REPO = Path(__file__).resolve().parent.parent

# One home for everything the tests download, import or cache; `make clean` removes it.
os.environ.setdefault("PADDLESFT_HOME", str(REPO / ".cache" / "paddlesft"))

# A loaded machine is no reason for a property to fail.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

import paddlesft  # noqa: E402, F401  (prepares the environment before any test imports paddle)


@pytest.fixture(autouse=True, scope="module")
def memory_given_back() -> Iterator[None]:
    """Give the kernel back what a file's models took, so that workers and their subprocesses fit into the memory."""
    yield
    if psutil.Process().memory_info().rss > 3 << 30:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded real model (SmolLM2-135M-Instruct) as a model directory; read-only, shared by all tests."""
    from paddlesft.models import resolve_model

    return resolve_model("embedded:smollm2")


@pytest.fixture(scope="session")
def tiny_llama(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama (hidden 64, 2 layers, 4 heads, 2 KV heads: grouped-query) with SmolLM2's tokenizer."""
    from tests.tiny_models import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama", tokenizer_from=smollm2)


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family name -> directory of its tiny random model (``tests/tiny_families.py``); each is written once."""
    from tests.tiny_families import write_tiny_family

    root = tmp_path_factory.mktemp("families")
    return cache(lambda name: write_tiny_family(name, root / name))


@pytest.fixture(scope="session")
def gsm8k_dir() -> Path:
    """The gsm8k data set beside the repository, where it is present."""
    path = REPO.parent / "shared" / "data" / "gsm8k"
    if not path.is_dir():
        pytest.skip("gsm8k is not beside the repository; the project does not need it and does not ship it")
    return path


@pytest.fixture(scope="session")
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m paddlesft ARGS`` as a user would and return the finished process."""

    def run(
        *args: object, cwd: Path | None = None, timeout: float = 900, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "paddlesft", *map(str, args)],
            cwd=cwd or REPO,
            env={**os.environ, "PYTHONPATH": str(REPO), "COLUMNS": "120", **environ},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture
def run_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``run_cli`` in this process: a new one takes five seconds to import paddle and paddlenlp."""
    from paddlesft.cli.main import main

    def run(*args: object, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.chdir(cwd or REPO)
            for name, value in {"COLUMNS": "120", **environ}.items():
                patch.setenv(name, value)
            capsys.readouterr()
            code = main([str(arg) for arg in args])
            return subprocess.CompletedProcess(args, code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def oracle() -> Iterator[Callable[..., dict]]:
    """Run ``tests/oracle/SCRIPT`` with torch, transformers and PEFT, in their own environment; its JSON answer."""
    from tests.torch_oracle import TorchOracle

    asked = TorchOracle()
    yield asked
    asked.close()


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that looks like the repository's root but may be written to: its entries are links."""
    root = tmp_path_factory.mktemp("checkout")
    for entry in REPO.iterdir():
        if entry.name not in {".git", ".pytest_cache", "demo_output", "checkpoints", "output"}:
            (root / entry.name).symlink_to(entry)
    return root


@pytest.fixture(scope="session")
def finished_demo(checkout: Path) -> tuple[Path, str]:
    """The real demo, run once as the README says: its output directory and what it printed."""
    # the installation is there (this test runs in it); make must not start it again when files are newer
    done = subprocess.run(
        ["make", "--assume-old=.venv/.installed", "demo"],
        cwd=checkout,
        env={**os.environ, "COLUMNS": "110"},
        capture_output=True,
        text=True,
        timeout=1200,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return checkout / "demo_output", done.stdout
