"""The decode loop: batches equal single rows and paddlenlp's own generate, and replies end where they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlesft.errors import UserError
from paddlesft.inference.cached_runner import CachedRunner
from paddlesft.inference.eager import EagerRunner
from paddlesft.inference.generation import generate
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.models import load_model, load_tokenizer
from tests.inference.adapters import with_lora, with_prefix

PROMPTS = [[11, 12, 13, 14, 15], [900], [31000, 5, 77, 402, 8, 1200, 17, 30], [44, 45]]
GREEDY = SamplingOptions(max_new_tokens=12)


@pytest.fixture(scope="module", params=["plain", "lora", "prefix"])
def model(request: pytest.FixtureRequest, tiny_llama: Path) -> paddle.nn.Layer:
    """A tiny grouped-query Llama with larger weights than its initialisation, so that its replies differ."""
    base = load_model(tiny_llama)
    paddle.seed(1)
    for value in base.state_dict().values():
        if value.ndim == 2:
            value.set_value(paddle.randn(value.shape) * 0.15)
    built = {"plain": lambda m: m, "lora": with_lora, "prefix": with_prefix}[request.param](base)
    built.eval()
    return built


@pytest.fixture(scope="module")
def plain(tiny_llama: Path) -> paddle.nn.Layer:
    return load_model(tiny_llama)


def upstream(model: paddle.nn.Layer, prompt: list[int], **options: object) -> list[int]:
    ids = paddle.to_tensor([prompt])
    chosen = model.generate(
        input_ids=ids, attention_mask=paddle.ones_like(ids), decode_strategy="greedy_search", bos_token_id=1,
        pad_token_id=0, **{"eos_token_id": 49151, **options},
    )  # fmt: skip
    return chosen[0].numpy()[0].tolist()


def test_a_batch_equals_single_rows_and_paddlenlp(model: paddle.nn.Layer) -> None:
    together = generate(model, PROMPTS, GREEDY)
    assert len({tuple(reply.token_ids) for reply in together}) == len(PROMPTS)
    for prompt, reply in zip(PROMPTS, together):
        assert generate(model, [prompt], GREEDY)[0] == reply
        assert upstream(model, prompt, max_new_tokens=12) == reply.token_ids
        assert (reply.finish_reason, reply.num_tokens) == ("length", 12)


def test_rows_that_finish_leave_and_the_others_go_on_unchanged(
    model: paddle.nn.Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = generate(model, PROMPTS, GREEDY)
    stop = [full[2].token_ids[1], full[0].token_ids[4], full[3].token_ids[7]]
    sizes = []
    step = CachedRunner.step
    monkeypatch.setattr(CachedRunner, "step", lambda self, tokens: sizes.append(len(tokens)) or step(self, tokens))
    ended = generate(model, PROMPTS, GREEDY, stop_token_ids=stop)
    for before, after in zip(full, ended):
        cut = next((i for i, token in enumerate(before.token_ids) if token in stop), None)
        assert after.token_ids == before.token_ids[:cut]
        assert after.finish_reason == ("length" if cut is None else "stop")
        assert after.num_tokens == len(after.token_ids) + (cut is not None)
    assert sum(reply.finish_reason == "stop" for reply in ended) >= 3
    assert sizes == [sum(reply.num_tokens > n for reply in ended) for n in range(1, max(r.num_tokens for r in ended))]


def test_sampled_replies_do_not_depend_on_the_batch(model: paddle.nn.Layer) -> None:
    options = GREEDY.replace(decode_strategy="sampling", temperature=0.9, top_p=0.95, seed=11)
    together = generate(model, PROMPTS, options)
    assert generate(model, PROMPTS, options) == together
    for row, prompt in enumerate(PROMPTS):
        assert generate(model, [prompt], options, rows=[row]) == [together[row]]
    assert generate(model, PROMPTS, options.replace(seed=12)) != together


def test_only_the_last_position_of_the_prompts_reaches_the_head(model: paddle.nn.Layer) -> None:
    inner = model.model if hasattr(model, "prefix_encoder") else model
    seen = []
    hook = inner.get_output_embeddings().register_forward_post_hook(lambda layer, x, y: seen.append(y.shape))
    try:
        logits = EagerRunner(model).prefill(PROMPTS)
    finally:
        hook.remove()
    assert seen == [[4, 1, 49152]]
    with paddle.no_grad():
        for row, prompt in enumerate(PROMPTS):
            whole = model(paddle.to_tensor([prompt]), attention_mask=paddle.ones([1, len(prompt)], dtype="int64"))
            whole = whole[0] if isinstance(whole, tuple) else whole
            assert np.abs((whole[0, -1] - logits[row]).numpy()).max() < 1e-4


def test_repetition_penalty_equals_paddlenlp(tmp_path: Path, smollm2: Path) -> None:
    from tests.tiny_models import write_tiny_llama

    model = load_model(write_tiny_llama(tmp_path / "few-words", smollm2, vocab_size=24))
    prompts = [[3, 9, 14], [20, 7, 7, 1, 12]]
    replies = generate(model, prompts, GREEDY.replace(repetition_penalty=1.7))
    without = generate(model, prompts, GREEDY)
    for prompt, reply, other in zip(prompts, replies, without):
        assert reply.token_ids == upstream(model, prompt, max_new_tokens=12, repetition_penalty=1.7)
        assert reply.token_ids != other.token_ids


def test_min_new_tokens_keeps_stop_tokens_away(plain: paddle.nn.Layer) -> None:
    first = generate(plain, [PROMPTS[0]], GREEDY)[0].token_ids
    stopped = generate(plain, [PROMPTS[0]], GREEDY, stop_token_ids=first[:1])[0]
    assert (stopped.token_ids, stopped.finish_reason, stopped.num_tokens) == ([], "stop", 1)
    longer = generate(plain, [PROMPTS[0]], GREEDY.replace(min_new_tokens=5), stop_token_ids=first[:1])[0]
    assert len(longer.token_ids) >= 5 and first[0] not in longer.token_ids[:5]


def test_callback_and_text_agree_and_stop_strings_end_the_reply(plain: paddle.nn.Layer, tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    heard: dict[int, list[tuple[int, str]]] = {0: [], 1: []}
    replies = generate(
        plain, PROMPTS[:2], GREEDY, on_token=lambda row, token, text: heard[row].append((token, text)),
        tokenizer=tokenizer,
    )  # fmt: skip
    for row, reply in enumerate(replies):
        assert [token for token, _ in heard[row]] == reply.token_ids
        assert "".join(text for _, text in heard[row]) == reply.text == tokenizer.decode(reply.token_ids)
    text = replies[0].text
    stop = text[3:8]
    cut = generate(plain, PROMPTS[:2], GREEDY.replace(stop=(stop,)), tokenizer=tokenizer)
    assert cut[0].text == text[: text.index(stop)]
    assert cut[0].finish_reason == "stop"
    assert cut[0].num_tokens < replies[0].num_tokens
    assert cut[1] == replies[1] or stop in replies[1].text


def test_a_reply_ends_with_the_context(tmp_path: Path, smollm2: Path) -> None:
    from tests.tiny_models import write_tiny_llama

    model = load_model(write_tiny_llama(tmp_path / "short", smollm2, max_position_embeddings=16, seq_length=16))
    replies = generate(model, [[5] * 12, [6] * 15, [7]], SamplingOptions(max_new_tokens=8))
    assert [(len(r.token_ids), r.finish_reason) for r in replies] == [(4, "length"), (1, "length"), (8, "length")]
    with pytest.raises(UserError) as caught:
        generate(model, [[5], [6] * 16, []], SamplingOptions())
    text = str(caught.value)
    assert "prompt 1 has 16 tokens; the model's context holds 16, the reply included" in text
    assert "prompt 2 has no tokens" in text
    assert "src_length" in text


def test_the_mode_of_the_model_is_left_as_it_was(plain: paddle.nn.Layer) -> None:
    plain.train()
    try:
        generate(plain, [[5]], SamplingOptions(max_new_tokens=1))
        assert plain.training and plain.llama.layers[0].training
    finally:
        plain.eval()
    generate(plain, [[5]], SamplingOptions(max_new_tokens=1))
    assert not plain.training
    assert generate(plain, [], SamplingOptions()) == []


def test_stop_strings_need_a_tokenizer(plain: paddle.nn.Layer) -> None:
    with pytest.raises(UserError, match="Stop strings need the model's tokenizer"):
        generate(plain, [[5]], SamplingOptions(stop=("x",)))
