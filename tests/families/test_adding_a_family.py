"""The page on adding a family tells the truth: its row, its tiny model and its workaround train as they stand there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from paddlesft.errors import UserError
from paddlesft.models import families
from paddlesft.models.capabilities import CAPABILITIES
from paddlesft.models.family import Family, imported
from tests import tiny_families
from tests.families import test_generation, test_merging, test_packing, test_quantization, test_table, test_training
from tests.families.tuning_runs import TuningRun, tune

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add-a-model.md"
NAME = "mixtral"


def code() -> dict[str, str]:
    """The page's Python: the file that a block's first line names -> the block."""
    blocks = re.findall(r"^```python\n# ([\w/.]+)[^\n]*\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return dict(blocks)


@pytest.fixture(scope="module")
def added() -> Family:
    """The family of the page, in the table and among the tiny models for as long as this file's tests run."""
    blocks = code()
    workaround = ModuleType("paddlesft.quirks.mixtral_routing")
    exec(blocks["paddlesft/quirks/mixtral_routing.py"], vars(workaround))
    row = eval(blocks["paddlesft/models/families.py"], vars(families).copy())
    entry = eval("{" + blocks["tests/tiny_families.py"] + "}", vars(tiny_families).copy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, workaround.__name__, workaround)
        patch.setattr(families, "FAMILIES", (*families.FAMILIES, row))
        patch.setitem(tiny_families.FAMILY_FIXTURES, NAME, entry[NAME])
        yield row


@pytest.fixture(scope="module")
def run_of(added: Family, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], TuningRun]:
    """Like ``tuning_run``, for the family of the page."""
    root = tmp_path_factory.mktemp("added")

    @cache
    def finished(family: str, method: str) -> TuningRun:
        full = method == "full"
        base = tiny_families.write_tiny_family(family, root / "base") if full else finished(family, "full").directory
        return tune(base, method, root / method)

    return finished


@pytest.mark.parametrize("method", ["full", "lora", "prefix"])
def test_it_learns_rows_by_heart(method: str, run_of: Callable[[str, str], TuningRun]) -> None:
    test_training.test_rows_are_learned_until_generation_reproduces_them(NAME, method, run_of)
    test_generation.test_a_padded_batch_gives_the_replies_of_single_rows(NAME, method, run_of)


def test_it_is_merged(run_of: Callable[[str, str], TuningRun], tmp_path: Path) -> None:
    test_merging.test_a_merged_model_equals_its_adapter(NAME, run_of, tmp_path)


def test_its_rows_are_packed(run_of: Callable[[str, str], TuningRun], tmp_path: Path) -> None:
    base = run_of(NAME, "full").base
    test_packing.test_packed_rows_have_the_loss_of_single_rows(NAME, "full", lambda name: base, tmp_path)


def test_its_experts_are_not_quantized(run_of: Callable[[str, str], TuningRun], tmp_path: Path) -> None:
    base = run_of(NAME, "full").base
    (tmp_path / "data").mkdir()
    data = test_quantization.write_rows(tmp_path / "data")
    with pytest.raises(UserError, match=r"gate gets an input of shape \[\d+, 64\] .*: \[\"\.\*gate\", \"\.\*w1\""):
        test_quantization.test_a_family_is_quantized_and_loaded_again(
            NAME, data, test_quantization.float_logits, lambda name: base, tmp_path
        )


def test_its_row_says_what_the_model_is(added: Family, run_of: Callable[[str, str], TuningRun]) -> None:
    base = run_of(NAME, "full").base
    test_table.test_a_row_reads_the_sizes_of_its_tiny_model(added, lambda name: base)
    test_table.test_lora_targets_are_every_linear_of_the_decoder_and_not_the_head(added, lambda name: base)


def test_the_table_shows_what_it_claims(added: Family) -> None:
    refused = {c.key for c in CAPABILITIES if not c.offered(added)}
    assert refused == {"hf_in", "hf_out", "gguf", "pipeline", "quantize", "qlora", "graph", "onnx"}


def test_the_workaround_is_still_needed() -> None:
    names: dict[str, object] = {}
    exec(code()["tests/quirks/test_mixtral_routing.py"], names)
    names["test_paddlenlp_still_cannot_weigh_its_experts"]()


def test_the_page_names_decoders_that_exist() -> None:
    rows = re.findall(r"^\| .* \| `(\w+)`.* \| `(\w+)\.py`, `(\w+)\.py` \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(rows) == 4
    for base, *files in rows:
        for file in files:
            decoder = next(f.decoder for f in families.FAMILIES if f".{file}:" in f.decoder)
            parents = {parent.__name__ for parent in imported(decoder).__mro__}
            assert base in parents
