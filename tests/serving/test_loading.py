"""From what a server is told to its models: names, texts of each adapter's own, and refusals before weights load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from paddlesft.errors import ModelDirectoryError, UserError
from paddlesft.export.directory import export_graph
from paddlesft.export.static_graph import write_static_graph
from paddlesft.inference.engine import Engine
from paddlesft.inference.engine_requests import GenerationRequest
from paddlesft.inference.generation import generate
from paddlesft.inference.loading import load_for_inference
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.models.directory import copy_tokenizer
from paddlesft.models.quantized.formats import WeightFormat
from paddlesft.models.quantized.on_load import entry_of_base
from paddlesft.serving import loading
from paddlesft.serving.errors import ApiError
from paddlesft.serving.loading import load_for_serving
from tests.inference.adapters import write_adapter
from tests.tiny_families import write_tiny_family
from tests.tiny_models import write_tiny_llama

OPTIONS = SamplingOptions(max_new_tokens=6)
MESSAGES = [{"role": "user", "content": "Hi there"}]


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> Path:
    return tiny_llama


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    made = {
        "plain": write_adapter(root / "plain", base, "lora"),
        "own": write_adapter(root / "own", base, "lora", seed=5, chat_template="alpaca", system_prompt="Be brief."),
        "prefix": write_adapter(root / "prefix", base, "prefix"),
    }
    copy_tokenizer(base, made["own"])
    config = made["own"] / "tokenizer_config.json"
    content = json.loads(config.read_text(encoding="utf-8")) | {"eos_token": "<|endoftext|>", "chat_template": None}
    config.write_text(json.dumps(content), encoding="utf-8")
    return made


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("weights are loaded before everything was checked")

    monkeypatch.setattr(loading, "load_weights", load)


def replies(loaded: Any, served: Any) -> list[list[int]]:
    engine = Engine(loaded.model, pad_token_id=loaded.pad_token_id).start()
    try:
        tickets = [
            engine.submit(
                GenerationRequest(
                    one.renderer.render_prompt(MESSAGES), OPTIONS, one.stop_token_ids, one.tokenizer, one.adapter
                )
            )
            for one in served
        ]
        found = [ticket.result() for ticket in tickets]
    finally:
        engine.close()
    return [[token.token_id for token in tokens] for finished, tokens in found]


def test_each_adapter_answers_as_it_does_alone(base: Path, adapters: dict[str, Path]) -> None:
    loaded = load_for_serving(base, [f"a={adapters['plain']}", str(adapters["own"])], [f"p={adapters['prefix']}"])
    served = list(loaded.models)
    assert loaded.models.names == ["a", "own", "p", base.name] and loaded.models.default.name == "a"
    assert [(one.adapter, one.adapter_kind) for one in served] == [
        ("a", "lora"), ("own", "lora"), ("p", "prefix"), (None, None),
    ]  # fmt: skip
    alone = [*map(load_for_inference, adapters.values()), load_for_inference(base)]
    assert "Be brief." in served[1].renderer.prompt_text(MESSAGES)
    for one, other in zip(served, alone):
        assert one.renderer.render_prompt(MESSAGES) == other.renderer.render_prompt(MESSAGES)
        assert (one.stop_token_ids, one.context_length) == (other.stop_token_ids, other.context_length)
    assert served[1].stop_token_ids != served[0].stop_token_ids
    assert served[0].tokenizer is served[2].tokenizer is served[3].tokenizer is not served[1].tokenizer
    wanted = [
        generate(one.model, [one.renderer.render_prompt(MESSAGES)], OPTIONS, one.stop_token_ids)[0].token_ids
        for one in alone
    ]
    assert replies(loaded, served) == wanted and len({*map(tuple, wanted)}) == 4
    with pytest.raises(ApiError, match=f"There is no model 'b' here. Served: a, own, p, {base.name}."):
        loaded.models.find("b")


def test_adapters_bring_their_base(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    plain = adapters["plain"]
    for arguments in (dict(model=None, lora_paths=[plain]), dict(model=plain)):
        loaded = load_for_serving(**arguments)
        assert loaded.directory == base.resolve() and loaded.models.names == ["plain", base.name]
    shutil.copytree(plain, tmp_path / "named")
    facts = json.loads((plain / "paddlesft.json").read_text(encoding="utf-8"))
    facts["base"]["name"] = "hf:org/Model-7B"
    (tmp_path / "named" / "paddlesft.json").write_text(json.dumps(facts), encoding="utf-8")
    assert load_for_serving(None, [tmp_path / "named"]).models.names == ["named", "Model-7B"]
    with pytest.raises(ModelDirectoryError, match="No model is named"):
        load_for_serving(None)


def test_a_graph_is_served_as_it_is(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    export_graph(load_for_inference(base), tmp_path / "graph", write_static_graph, new_tokens=2)
    with pytest.raises(ModelDirectoryError, match=r"holds a static graph, which takes no adapter .*with the adapter"):
        load_for_serving(tmp_path / "graph", [adapters["plain"]])
    loaded = load_for_serving(tmp_path / "graph", served_model_name="org/graph:1")
    assert loaded.models.names == ["org/graph:1"] and loaded.models.default.adapter is None
    assert replies(loaded, loaded.models) == replies(load_for_serving(base), load_for_serving(base).models)


@pytest.mark.usefixtures("no_weights")
def test_everything_wrong_is_said_at_once_before_weights_are_loaded(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "my adapter").symlink_to(adapters["plain"])
    other = write_tiny_llama(tmp_path / "other", base, seed=9)
    foreign = write_adapter(tmp_path / "foreign", other, "lora")
    biased = write_adapter(tmp_path / "biased", base, "lora", lora={"lora_bias": "all"})
    for arguments, messages in (
        (
            dict(lora_paths=[f"a b={tmp_path / 'nowhere'}", adapters["prefix"]], prefix_paths=[base]),
            [
                "5 things are wrong with the models to serve:",
                f"\n  - lora_path: {tmp_path / 'nowhere'} is not a directory.",
                "\n  - lora_path: 'a b' cannot be a name; allowed: letters",
                "it holds a prefix adapter: give it as prefix_path.",
                "it holds a complete model: give it as model_name_or_path.",
            ],
        ),
        (
            dict(lora_paths=[tmp_path / "my adapter", f"a={adapters['plain']}", f"a={adapters['own']}"]),
            [
                "2 things are wrong",
                "lora_path: 'my adapter' cannot be a name; allowed: letters, digits and",
                f"Give --lora_path NAME={tmp_path / 'my adapter'}.",
                f"'a' is given to lora_path {adapters['plain']} and to lora_path {adapters['own']}. Give other names",
            ],
        ),
        (
            dict(lora_paths=[f"{base.name}={adapters['plain']}"], served_model_name=" "),
            ["' ' cannot be the model's name"],
        ),
        (
            dict(lora_paths=[f"{base.name}={adapters['plain']}"]),
            [f"'{base.name}' is given to the base and to lora_path"],
        ),
        (dict(lora_paths=[adapters["plain"], foreign]), [f"{base} is not the model that {foreign} was trained on."]),
        (
            dict(lora_paths=[adapters["plain"], biased]),
            [f"{biased} cannot share a base with other adapters: it has biases (trainable_bias: all)"],
        ),
        (
            dict(lora_paths=[adapters["plain"]], tensor_parallel=(2, 0)),
            ["lora_path: adapters are not served by a model whose layers are divided among 2 ranks. Merge"],
        ),
        (dict(lora_paths=["b="]), ["lora_path: 'b=' names no directory. Give NAME=DIR, or DIR."]),
        (dict(lora_paths=[adapters["plain"]], mode="static"), ["mode: static runs an exported graph"]),
    ):
        with pytest.raises(ModelDirectoryError) as caught:
            load_for_serving(base, **arguments)
        for message in messages:
            assert message in str(caught.value)
    alibi = write_tiny_family("llama", tmp_path / "alibi", alibi=True)
    with pytest.raises(UserError, match="Adapters by name need a model that is computed step by step"):
        load_for_serving(alibi, [write_adapter(tmp_path / "of-alibi", alibi, "lora")])


def test_adapters_need_the_same_weights_of_the_base(
    base: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nf4 = entry_of_base(WeightFormat("nf4", 16, True))
    rounded = [write_adapter(tmp_path / name, base, "lora", seed=5, base_quantization=nf4) for name in ("q", "r")]
    with pytest.raises(ModelDirectoryError) as caught:
        load_for_serving(None, [rounded[0], adapters["plain"]])
    said = str(caught.value)
    assert "The adapters need different weights, and a server holds one base in memory:\n  - q: " in said
    assert "weights rounded to nf4 in groups of 16" in said and "plain: " in said and "--base_precision full" in said
    assert load_for_serving(None, [rounded[0], adapters["plain"]], base_precision="full").base.how is None
    asked: list[Path] = []
    settle = loading.settle_base
    monkeypatch.setattr(loading, "settle_base", lambda *given: asked.append(given[0]) or settle(*given))
    loaded = load_for_serving(None, rounded)
    assert loaded.base.how.name == "nf4" and asked == rounded[:1]  # a base is hashed once
    wanted = load_for_inference(rounded[0])
    prompt = wanted.renderer.render_prompt(MESSAGES)
    found = replies(loaded, list(loaded.models)[:1])[0]
    assert found == generate(wanted.model, [prompt], OPTIONS, wanted.stop_token_ids)[0].token_ids
