"""Two adapters over the real model, asked over HTTP at the same time: each reply is the merged model's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import paddle
import pytest

from paddlesft.inference.engine import EngineLimits
from paddlesft.inference.generation import generate
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.models import load_model
from paddlesft.tuning.lora import load_lora, save_lora
from tests.inference.adapters import with_lora
from tests.serving.running import running

QUESTIONS = ("Write a short poem about the sea.", "请用一句话介绍一下北京。")
NEW_TOKENS = 8


def write_loras(directory: Path, base: Path, **alphas: int) -> dict[str, Path]:
    """LoRA adapters with random matrices B and these values of alpha; they change the replies."""
    model, written = with_lora(load_model(base), lora_rank=8), {}
    for seed, (name, alpha) in enumerate(alphas.items()):
        paddle.seed(seed)
        for key, value in model.get_trainable_state_dict().items():
            if "lora_B" in key:
                value.set_value(paddle.randn(value.shape) * 0.03)
        model.lora_config.lora_alpha = alpha
        written[name] = directory / name
        written[name].mkdir()
        save_lora(model, written[name])
    return written


@pytest.mark.slow
def test_two_adapters_reply_at_once_as_their_merged_models(smollm2: Path, tmp_path: Path) -> None:
    adapters = write_loras(tmp_path, smollm2, a=32, b=24)
    asked = [(name, question) for question in QUESTIONS for name in ("base", *adapters)]
    paths = [f"{name}={path}" for name, path in adapters.items()]
    with running(smollm2, EngineLimits(max_rows=6), name="base", lora_paths=paths) as server:

        def ask(request: tuple[str, str]) -> str:
            name, question = request
            body = {"model": name, "messages": [{"role": "user", "content": question}], "max_tokens": NEW_TOKENS}
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body | {"temperature": 0}, timeout=300)
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]["message"]["content"]

        with ThreadPoolExecutor(len(asked)) as threads:
            found = dict(zip(asked, threads.map(ask, asked)))
        listed = [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]]
        served = server.service.models.find("base")
    assert listed == ["a", "b", "base"]
    prompts = [served.renderer.render_prompt([{"role": "user", "content": question}]) for question in QUESTIONS]
    for name, path in adapters.items():
        model = load_lora(load_model(smollm2), path, merge=True)
        options = SamplingOptions(max_new_tokens=NEW_TOKENS)
        alone = generate(model, prompts, options, served.stop_token_ids, tokenizer=served.tokenizer)
        assert [found[name, question] for question in QUESTIONS] == [reply.text for reply in alone]
    assert len({tuple(found[name, question] for question in QUESTIONS) for name in listed}) == 3
