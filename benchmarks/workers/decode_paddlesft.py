"""PaddleSFT's decode loop over a model directory or an exported graph.

Arguments: the directory of decode_speed.py's setting, and that of the model.
"""

from __future__ import annotations

import importlib.metadata
import sys

from decoding import held, read_setting, serve_decoding, step_by_step

import paddlesft  # noqa: F401  (prepares the environment before paddle is imported)


def main(directory: str, model: str) -> None:
    import paddle
    import paddlenlp  # noqa: F401

    from paddlesft.inference.benchmark import choose
    from paddlesft.inference.loading import load_for_inference
    from paddlesft.inference.runners import runner_of

    before = held()
    loaded = load_for_inference(model, dtype="float32")

    def decode(prompts: list[list[int]], new_tokens: int) -> dict:
        runner = runner_of(loaded.model, loaded.pad_token_id)
        return step_by_step(
            lambda: choose(runner.prefill(prompts)), lambda tokens: choose(runner.step(tokens)), new_tokens
        )

    versions = f"paddlepaddle {paddle.__version__}"
    if "onnxruntime" in sys.modules:
        versions += f", onnxruntime {importlib.metadata.version('onnxruntime')}"
    serve_decoding(read_setting(directory), versions, before, decode)


if __name__ == "__main__":
    main(*sys.argv[1:])
