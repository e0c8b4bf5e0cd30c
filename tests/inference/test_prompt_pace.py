"""A prompt's pieces are as long as the replies may wait."""

from __future__ import annotations

import time
from itertools import pairwise

from paddlesft.inference.engine import Engine
from paddlesft.inference.prompt_pace import PromptPace
from tests.inference.engine_running import Watched, ask, collected, small, wait_until
from tests.models.decoders import proofs


def test_pieces_take_the_time_that_replies_may_wait() -> None:
    pace = PromptPace(None)
    assert pace.tokens == 64
    pace.ran(64, 0.64)  # 10 ms each
    assert pace.tokens == 16
    for _ in range(10):
        pace.ran(16, 16 * 0.004 + 0.02)  # shorter pieces cost more
    assert pace.tokens == 32
    pace.ran(3, 5.0)  # says nothing
    assert pace.tokens == 32
    for _ in range(20):
        pace.ran(512, 0.01)
    assert pace.tokens == 512
    pace.ran(512, 600)
    assert pace.tokens == 16
    fixed = PromptPace(7)
    fixed.ran(7, 100)
    assert fixed.tokens == 7


def test_a_long_prompt_does_not_hold_up_a_reply() -> None:
    watched = Watched(small("llama"))
    watched.before = lambda inputs: time.sleep(0.004 * inputs.input_ids.shape[1])
    engine = Engine(watched, pad_token_id=proofs.PADDING).start()
    running = engine.submit(ask([5, 6, 7], max_new_tokens=400))
    wait_until(lambda: engine.stats().steps > 3)
    began = len(watched.calls)
    long = engine.submit(ask(proofs.rows_of(300)[0], max_new_tokens=1))
    assert collected(long)[0].prompt_tokens == 300
    running.cancel()
    engine.close()
    pieces = [width for _, width in watched.calls[began:] if width > 1]
    assert sum(pieces) == 300 and max(pieces) <= 64 and min(pieces[:-1]) >= 16
    between = [width for _, width in watched.calls[began:]]
    assert all(one == 1 or other == 1 for one, other in pairwise(between))
