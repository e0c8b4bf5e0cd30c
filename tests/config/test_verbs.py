"""The keys of predict, chat, merge-lora and import-gguf."""

from __future__ import annotations

import pytest

from paddlesft.config import load_arguments
from paddlesft.config.serve import ServeConfig
from paddlesft.config.verbs import ChatConfig, ImportGgufConfig, MergeLoraConfig, PredictConfig
from paddlesft.errors import ConfigError


def load(cls: type, *tokens: str):
    instances, _, notices = load_arguments({"verb": cls}, None, tokens)
    return instances["verb"], notices


PREDICTOR_COMMAND = """--model_name_or_path facebook/llama-7b --dtype float16 --batch_size 8 --mode dynamic --device gpu
    --data_file ./data/dev.json --lora_path ./ckpt --decode_strategy sampling --top_p 0.9 --src_length 300
    --max_length 512 --output_file out.json --quant_type None"""


def test_a_command_of_paddlenlps_predictor_can_be_pasted() -> None:
    config, notices = load(PredictConfig, *PREDICTOR_COMMAND.split())
    assert (config.model_name_or_path, config.dtype, config.batch_size) == ("facebook/llama-7b", "float16", 8)
    assert (config.top_p, config.src_length, config.max_length, config.quant_type) == (0.9, 300, 512, None)
    assert (config.data_file, config.output_file, config.device) == ("./data/dev.json", "out.json", "gpu")
    assert notices == []


@pytest.mark.parametrize("cls", [PredictConfig, ChatConfig])
@pytest.mark.parametrize(("token", "strategy"), [("do_sample=true", "sampling"), ("do_sample=false", "greedy_search")])
def test_do_sample_is_read_as_the_strategy(cls: type, token: str, strategy: str) -> None:
    config, notices = load(cls, token)
    assert config.decode_strategy == strategy
    assert len(notices) == 1 and f'read as decode_strategy: "{strategy}"' in notices[0]
    with pytest.raises(ConfigError, match=r"do_sample: .*allowed: true or false"):
        load(cls, "do_sample=maybe")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (
            "decode_strategy=beam_search",
            'decode_strategy: found "beam_search" (text); allowed: one of sampling, greedy_search.',
        ),
        ("batch_size=0", "batch_size: found 0 (an integer); allowed: an integer at least 1."),
        ("lora_rank=8", "unknown key 'lora_rank'."),
    ],
)
def test_what_predict_refuses(token: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(PredictConfig, token)
    assert str(caught.value).startswith(f"command line: {message}")


def test_keys_of_the_predictor_without_effect_are_said() -> None:
    _, notices = load(PredictConfig, "--model_prefix", "llama", "--export_precache")
    assert notices == [
        "command line: model_prefix has no effect: graph.json in the directory names the graph's files.",
        "command line: export_precache has no effect: prefix_path alone is enough.",
    ]


def test_a_command_of_merge_lora_params_can_be_pasted() -> None:
    config, notices = load(
        MergeLoraConfig,
        "--model_name_or_path",
        "base",
        "--lora_path",
        "lora",
        "--output_path",
        "merged",
        "--device",
        "cpu",
    )
    assert (config.model_name_or_path, config.lora_path, config.merge_model_path) == ("base", "lora", "merged")
    assert config.device == "cpu" and config.dtype is None
    assert notices == ["command line: output_path: the name here is merge_model_path."]


def test_chat_and_import() -> None:
    config, _ = load(ChatConfig, "--model_name_or_path", "m", "--system", "Be brief.", "--history", "false")
    assert (config.system_prompt, config.history, config.stream) == ("Be brief.", False, True)
    config, _ = load(ImportGgufConfig, "--force")
    assert config.overwrite is True


def test_a_command_of_flask_server_can_be_pasted() -> None:
    command = "--model_name_or_path out --port 8011 --flask_port 8020 --src_length 512 --max_length 768 --dtype float16"
    command += " --title 我的模型 --lora_path ckpt --quant_type None --batch_size 1 --mode dynamic --device gpu"
    config, notices = load(ServeConfig, *command.split(), "--base_port", "8020", "--top_p=0.9")
    assert (config.model_name_or_path, config.port, config.flask_port, config.title) == ("out", 8011, 8020, "我的模型")
    assert (config.src_length, config.max_length, config.lora_path, config.top_p) == (512, 768, ["ckpt"], 0.9)
    assert (config.quant_type, config.host, config.page) == (None, "127.0.0.1", True)
    assert notices == [
        "command line: base_port: the name here is flask_port.",
        "command line: batch_size has no effect: replies join and leave the batch as they come; max_rows bounds it.",
    ]


def test_keys_of_lists_that_are_repeated_collect_and_others_do_not() -> None:
    adapters = ("--lora_path", "a=x", "--lora_path=b=y", "lora_path=z", "--prefix_path", "p,q=r")
    config, notices = load(ServeConfig, *adapters, "--api_key", "k1", "--api_key", "k2")
    assert config.lora_path == ["a=x", "b=y", "z"] and config.prefix_path == ["p", "q=r"]
    assert config.api_key == ["k1", "k2"] and notices == []


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("--quantization=wint4", "quantizing while a server loads (paddlesft quantize writes a directory that can be"),
        ("--enable_mm", "serving models that see is not built yet"),
        ("--flask_port=99999", "allowed: an integer at least 0 and at most 65535."),
        ("--max_rows=0", "allowed: an integer at least 1 and at most 256."),
    ],
)
def test_what_serve_refuses(token: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(ServeConfig, token)
    assert message in str(caught.value)
