"""``paddlesft models``: the table, one family, JSON; nothing but the rows of the family table is said."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from paddlesft.cli.main import run_verb
from paddlesft.models import capabilities
from paddlesft.models.capabilities import CAPABILITIES, UNPROVEN, capability_table
from paddlesft.models.families import FAMILIES, family_named
from paddlesft.models.family import Family


@pytest.fixture()
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run the verb and return what it prints on a terminal of 120 columns."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*argv: str) -> str:
        assert run_verb("models", argv) == 0
        return capsys.readouterr().out

    return run


def test_the_table_has_a_line_for_each_family_and_fits(shown: Callable[..., str]) -> None:
    lines = shown().splitlines()
    assert all(len(line.rstrip()) <= 120 for line in lines)
    head = next(i for i, line in enumerate(lines) if line.startswith("family "))
    lines = lines[head:]
    assert [line.split()[0] for line in lines[1 : len(FAMILIES) + 1]] == [family.name for family in FAMILIES]
    for line, (_, refusals) in zip(lines[1:], capability_table()):
        assert line.count("✓") == sum(not why for why in refusals.values())
        assert line.count(" - ") + line.rstrip().endswith("-") >= sum(bool(why) for why in refusals.values())
    assert lines[-1] == "✓ is proved by the tests. For a family and its reasons: paddlesft models NAME"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_one_family_is_shown_in_full(family: Family, shown: Callable[..., str]) -> None:
    text = " ".join(shown(family.name).split())
    for fact in [family.title, family.causal_lm, family.positions, family.chat_template, *family.model_types,
                 *family.tokenizers, *family.lora_target_modules]:  # fmt: skip
        assert " ".join(fact.split()) in text
    for capability in CAPABILITIES:
        why = capability.refusal(family)
        assert f"{capability.title} no: {' '.join(why.split())}" in text if why else capability.meaning in text
    assert ("pt.yaml" in text) == family.prefix_tuning
    for file in json.loads(shown(family.name, "--json"))["configs"]:
        assert file in text and (Path(__file__).parents[2] / file).is_file()


def test_json_holds_the_same_facts(shown: Callable[..., str]) -> None:
    everything = json.loads(shown("--json"))
    assert [row["name"] for row in everything] == [family.name for family in FAMILIES]
    for row, (family, refusals) in zip(everything, capability_table()):
        marks = {key: cell["reason"] for key, cell in row["capabilities"].items()}
        assert {key: marks[key] for key in refusals} == refusals
        assert all(cell["offered"] != bool(cell["reason"]) for cell in row["capabilities"].values())
        assert row["classes"]["model"] == family.causal_lm
    assert json.loads(shown("qwen2", "--json")) == everything[[f.name for f in FAMILIES].index("qwen2")]


def test_a_value_of_model_type_finds_its_family(shown: Callable[..., str]) -> None:
    assert shown("GPT2") == shown("gpt")
    assert "ChatGLMForCausalLM" in shown("chatglm")  # two families have this model_type; one has the name


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("ChatGLM3", "chatglm_v2"),
        ("chatglm2-6b", "chatglm_v2"),
        ("gpt-3", "gpt"),
        ("qwen2.5", "qwen2"),
        ("BLOOMZ", "bloom"),
    ],
)
def test_a_model_finds_its_family(model: str, family: str, shown: Callable[..., str]) -> None:
    assert shown(model) == shown(family)


@pytest.mark.parametrize("columns", [80, 100, 119])
def test_a_narrow_terminal_shows_the_models_too(
    columns: int, shown: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = shown().splitlines()
    assert all(len(line.rstrip()) <= columns for line in lines)
    for family in FAMILIES:
        named = [line for line in lines if line.startswith(f"{family.name} ")]
        assert capabilities.short_title(family) in named[-1]
        assert named[0].count("✓") == sum(capability.offered(family) for capability in CAPABILITIES)


def test_an_unknown_family_gets_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb("models", ["mistrall"]) == 2
    names = ", ".join(family.name for family in FAMILIES)
    assert capsys.readouterr().err == (
        f"paddlesft models: there is no model family 'mistrall'. Did you mean 'mistral'? Allowed: {names}.\n"
    )
    assert run_verb("models", ["xyzzy"]) == 2
    assert f"family 'xyzzy'. Allowed: {names}." in capsys.readouterr().err


def test_what_a_row_does_not_claim_has_no_mark_and_a_reason() -> None:
    llama = family_named("llama")
    refused = replace(llama, packing=False, packing_refusal="because", prefix_tuning=False, prefix_refusal="why not",
                      hf_layout=None, hf_refusal="no layout")  # fmt: skip
    reasons = {c.key: c.refusal(refused) for c in CAPABILITIES}
    assert {key: why for key, why in reasons.items() if why} == {
        "prefix": "why not", "packing": "because", "hf_in": "no layout", "hf_out": "no layout",
    }  # fmt: skip
    tied = replace(llama, quantization_refusal="one matrix for all layers")
    assert [c.key for c in CAPABILITIES if not c.offered(tied)] == ["quantize", "qlora"]
    assert {c.refusal(replace(llama, status="unproven")) for c in CAPABILITIES} == {UNPROVEN}
    assert "transformers" in capabilities._hugging_face_out(replace(family_named("qwen"), status="tested"))
    assert not any(c.offered(replace(llama, status="unproven")) for c in CAPABILITIES)


def test_it_answers_within_a_second_and_without_paddle() -> None:
    code = (
        "import sys; from paddlesft.cli.main import main; code = main(['models']);"
        "assert not {'paddle', 'paddlenlp', 'torch'} & set(sys.modules), 'loads a framework'; sys.exit(code)"
    )
    times = []
    for _ in range(3):  # the first run may compile the files
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        times.append(time.perf_counter() - begin)
    assert min(times) < 1.5  # 0.3 s on an idle machine
