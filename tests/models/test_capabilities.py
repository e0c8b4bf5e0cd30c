"""Every mark of the capability table is earned: the test that proves it exists, for that very family."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.models.capabilities import CAPABILITIES, UNPROVEN, capability_table, gguf_architectures
from paddlesft.models.family import Family
from tests.parallel import test_pipeline_training

REPO = Path(__file__).resolve().parents[2]
ROOMS = ("export", "families", "models", "parallel", "tuning")
TRAINING = "tests/families/test_training.py::test_rows_are_learned_until_generation_reproduces_them"
GENERATION = "tests/families/test_generation.py"
TORCH = "tests/models/test_families_against_torch.py"
REMOTE_CODE = "tests/models/hf_layouts/test_remote_code_models.py"
JSON_CONFIGS = "tests/families/test_configs.py::test_a_json_config_runs_on_the_tiny_model"
GGUF = "tests/models/test_gguf_architectures.py"


def read_from_hugging_face(family: Family) -> list[str]:
    """Against transformers, or against the published formulas where transformers has no such model."""
    layout = family.hugging_face_layout()
    if layout.export_refusal:
        return [f"{REMOTE_CODE}::test_converted_logits[{family.name}]"]
    return [f"{TORCH}::test_imported_logits[{layout.model_type}]"]


def written_for_hugging_face(family: Family) -> list[str]:
    model_type = family.hugging_face_layout().model_type
    return [f"{TORCH}::test_exported_logits[{family.name}]", f"{TORCH}::test_there_and_back[{model_type}]"]


def in_pipelines(family: Family) -> list[str]:
    """On two ranks, all weights and LoRA."""
    cases = [name for ranks, _, name in test_pipeline_training.NAMES if ranks == 2]
    wanted = [f"{family.name} {method} " for method in ("full", "lora")]
    found = [next((name for name in cases if name.startswith(begin)), begin) for begin in wanted]
    return [
        f"tests/parallel/test_pipeline_training.py::test_pipeline_has_the_losses_of_one_process[{c}]" for c in found
    ]


# key of a capability -> the tests that stand behind its mark, for a family
PROOFS: dict[str, Callable[[Family], list[str]]] = {
    "full": lambda family: [
        f"{TRAINING}[{family.name}-full]",
        f"tests/families/test_training.py::test_full_fine_tuning_reaches_every_weight[{family.name}]",
        f"tests/families/test_evaluation.py::"
        f"test_the_loss_on_unseen_rows_is_that_of_the_models_own_forward_pass[{family.name}-full]",
    ],
    "lora": lambda family: [
        f"{TRAINING}[{family.name}-lora]",
        f"tests/families/test_training.py::test_every_low_rank_update_has_learned_something[{family.name}]",
    ],
    "prefix": lambda family: [f"{TRAINING}[{family.name}-prefix]"],
    "packing": lambda family: [
        f"tests/families/test_packing.py::test_packed_rows_have_the_loss_of_single_rows[{family.name}-{method}]"
        for method in ("full", "lora", *(["prefix"] if family.prefix_tuning else []))
    ],
    "tensor": lambda family: [
        f"tests/parallel/test_tensor_training.py::test_divided_layers_train_as_whole_ones[{family.name}-{kind}]"
        for kind in ("rows", "packed")
    ],
    "pipeline": in_pipelines,
    "quantize": lambda family: [
        f"tests/families/test_quantization.py::test_a_family_is_quantized_and_loaded_again[{family.name}]",
        *(f"{JSON_CONFIGS}[{family.name}-{kind}]" for kind in ("ptq", "gptq", "wint8")),
    ],
    "qlora": lambda family: [
        f"tests/tuning/test_quantized_lora.py::test_every_family_takes_a_step[{family.name}]",
        f"{JSON_CONFIGS}[{family.name}-qlora]",
    ],
    "generate": lambda family: [
        f"{GENERATION}::test_a_padded_batch_gives_the_replies_of_single_rows[{family.name}-full]",
        f"{GENERATION}::test_the_logits_of_a_padded_batch_are_those_of_single_rows[{family.name}-full]",
        f"{GENERATION}::test_drawn_replies_repeat_and_do_not_depend_on_the_batch[{family.name}-full]",
        f"tests/families/test_prediction.py::test_a_prediction_file_holds_the_learned_replies[{family.name}-full]",
    ],
    "merge": lambda family: [f"tests/families/test_merging.py::test_a_merged_model_equals_its_adapter[{family.name}]"],
    "graph": lambda family: [
        f"tests/models/steps/test_steps.py::{test}[{family.name}]"
        for test in ("test_a_step_gives_the_logits_of_the_layers", "test_the_traced_step_computes_the_same")
    ],
    "onnx": lambda family: [f"tests/export/test_onnx_graph.py::test_every_family_is_written[{family.name}]"],
    "hf_in": read_from_hugging_face,
    "hf_out": written_for_hugging_face,
    "gguf": lambda family: [
        f"{GGUF}::test_imported_model_equals_transformers[{name}]" for name in gguf_architectures(family)
    ],
}


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """The names of the tests of these rooms, as pytest finds them."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n0", *(f"tests/{r}" for r in ROOMS)],
        cwd=REPO, capture_output=True, text=True, timeout=300,
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},  # -v prints otherwise
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return set(done.stdout.splitlines())


def test_every_capability_has_proofs() -> None:
    assert set(PROOFS) == {capability.key for capability in CAPABILITIES}


def test_every_mark_is_earned(collected: set[str]) -> None:
    missing = [
        f"{family.name} {key}: {test}"
        for family, refusals in capability_table()
        for key, why in refusals.items()
        if not why
        for test in PROOFS[key](family)
        if test not in collected
    ]
    assert missing == []


def test_nothing_that_is_tested_goes_without_its_mark(collected: set[str]) -> None:
    """A row that still says "unproven" while all its tests are there is out of date."""
    proven = [family.name for family, refusals in capability_table() if refusals["full"] == UNPROVEN
              if all(test in collected for test in PROOFS["full"](family))]  # fmt: skip
    assert proven == []


def test_no_mark_without_a_proof_in_words() -> None:
    for capability in CAPABILITIES:
        assert capability.meaning and capability.title and capability.title_zh
