"""PaddleNLP's own ``generate``, greedy, over the model as PaddleSFT loads it. Arguments as for decode_paddlesft.py."""

from __future__ import annotations

import sys

from decoding import held, read_setting, serve_decoding, whole_replies

import paddlesft  # noqa: F401  (prepares the environment before paddle is imported)


def main(directory: str, model: str) -> None:
    import paddle
    import paddlenlp

    from paddlesft.models import load_model

    before = held()
    loaded = load_model(model, dtype="float32")
    loaded.eval()
    nothing = loaded.config.vocab_size  # no token that could be chosen ends a reply

    def decode(prompts: list[list[int]], new_tokens: int) -> dict:
        ids = paddle.to_tensor(prompts, dtype="int64")

        def generate(count: int) -> list[list[int]]:
            replies, _ = loaded.generate(
                ids, attention_mask=paddle.ones_like(ids), decode_strategy="greedy_search", max_new_tokens=count,
                eos_token_id=nothing, pad_token_id=0,
            )  # fmt: skip
            return replies.tolist()

        return whole_replies(generate, new_tokens)

    serve_decoding(
        read_setting(directory), f"paddlenlp {paddlenlp.__version__}, paddlepaddle {paddle.__version__}", before, decode
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
