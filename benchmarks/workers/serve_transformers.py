"""A chat server of the usual kind: FastAPI, and ``generate`` in a thread that feeds a ``TextIteratorStreamer``.

One lock around ``generate``, so one reply at a time. Runs in the environment .venv-oracle. Arguments: the model's
directory in Hugging Face's layout, the port.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from threading import Lock, Thread
from typing import Any

import torch
import transformers
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel


class ChatRequest(BaseModel):
    """What the benchmark sends."""

    messages: list[dict[str, str]]
    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0


def create_app(directory: str) -> FastAPI:
    """Load the model and return the application."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    lock = Lock()
    app = FastAPI()

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    @app.post("/v1/chat/completions")
    def chat(asked: ChatRequest) -> StreamingResponse:
        inputs = tokenizer.apply_chat_template(
            asked.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampling: dict[str, Any] = {"do_sample": False}
        if asked.temperature:
            sampling = {"do_sample": True, "temperature": asked.temperature}

        def generate() -> None:
            with lock, torch.inference_mode():
                model.generate(
                    **inputs, streamer=streamer, max_new_tokens=asked.max_tokens, min_new_tokens=asked.min_tokens,
                    **sampling,
                )  # fmt: skip

        def events() -> Iterator[str]:
            for text in streamer:
                yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n"
            yield "data: [DONE]\n\n"

        Thread(target=generate, daemon=True).start()
        return StreamingResponse(events(), media_type="text/event-stream")

    return app


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    uvicorn.run(create_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
