"""Serve staggered requests from a model that two ranks share; write the replies, and those of one process.

    python -m paddle.distributed.launch --nproc_per_node 2 serve_ranks.py MODEL OUTPUT [lose]

With "lose" the second rank ends in the middle of the replies.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from paddlesft.parallel.tensor_ranks import start_ranks

ranks, rank = start_ranks()

from paddlesft.inference.engine import Engine, EngineLimits  # noqa: E402
from paddlesft.inference.engine_requests import GenerationRequest  # noqa: E402
from paddlesft.inference.generation import generate  # noqa: E402
from paddlesft.inference.loading import load_for_inference  # noqa: E402
from paddlesft.inference.parallel_runner import Leader, follow  # noqa: E402
from paddlesft.inference.sampling import SamplingOptions  # noqa: E402
from paddlesft.inference.step_model import EagerModel  # noqa: E402


class DyingModel(EagerModel):
    """Ends its process in the middle of the replies, at a call that is always the same."""

    calls = 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls == 20:
            os._exit(7)
        return super().__call__(*arguments)


model, output, lose = sys.argv[1], Path(sys.argv[2]), sys.argv[3:] == ["lose"]
loaded = load_for_inference(model, tensor_parallel=(ranks, rank))
step_model = (DyingModel if rank and lose else EagerModel)(loaded.model, loaded.pad_token_id)
if rank:
    follow(step_model)
    sys.exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, on the other's death; a server ends in order, too
leader = Leader(ranks)
limits = EngineLimits(max_rows=3, prefill_tokens=8, prefix_cache_tokens=0)
engine = Engine(step_model, limits, make_runner=leader.make_runner)
leader.watch(engine.give_up)
engine.start()
lengths = (5, 31, 12, 20, 3) if not lose else (5, 5)
prompts = [[(7 * number + 13 * place) % 900 + 20 for place in range(length)] for number, length in enumerate(lengths)]
options = [
    SamplingOptions(max_new_tokens=400 if lose else 8 + 3 * number, seed=number, temperature=0.7,
                    decode_strategy="sampling" if number % 2 else "greedy_search")
    for number in range(len(prompts))
]  # fmt: skip
tickets = []
for prompt, chosen in zip(prompts, options):
    tickets.append(engine.submit(GenerationRequest(prompt, chosen)))
    time.sleep(0.02)
ended = [ticket.result() for ticket in tickets]
patience = time.monotonic() + 30
while lose and engine.failed is None and time.monotonic() < patience:
    time.sleep(0.05)  # a call of the model may fail before the other rank's end is seen
found = {
    "failed": engine.failed,
    "reasons": [finished.finish_reason for finished, _ in ended],
    "errors": [finished.error for finished, _ in ended],
    "tokens": [[one.token_id for one in tokens] for _, tokens in ended],
}
if not lose:
    engine.drain(10)
    leader.end()
    whole = load_for_inference(model)
    found["alone"] = [generate(whole.model, [prompt], chosen)[0].token_ids for prompt, chosen in zip(prompts, options)]
output.write_text(json.dumps(found), encoding="utf-8")
os._exit(0 if not lose else 3)
