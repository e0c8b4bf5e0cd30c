"""Two ranks that miss each other in three ways: ``missing_ranks.py DIRECTORY``. The launch fails, as it should."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import paddle
import paddle.distributed as dist

from paddlesft.parallel import gloo


def main() -> None:
    """Write each rank's errors into DIRECTORY; rank 1 ends with an error of its own."""
    directory = Path(sys.argv[1])
    gloo.install()
    dist.init_parallel_env()
    rank = dist.get_rank()
    late, order, dead = (dist.new_group([0, 1]) for _ in range(3))

    def expect_error(name: str, function) -> None:
        begin = time.monotonic()
        try:
            function()
        except gloo.MissingRank as error:
            (directory / f"{name}-{rank}").write_text(f"{time.monotonic() - begin}\n{error}", encoding="utf-8")

    tensor = paddle.ones([3])
    if rank == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of the launcher, when rank 1 has ended: this rank says more yet
        expect_error("late", lambda: dist.all_reduce(tensor, group=late))
        expect_error("order", lambda: dist.all_reduce(tensor, group=order))
        expect_error("dead", lambda: dist.recv(tensor, src=1, group=dead))
        dist.barrier(dead)
    else:
        while not (directory / "late-0").exists():
            time.sleep(0.05)
        expect_error("order", lambda: dist.broadcast(tensor, src=0, group=order))
        raise ValueError("the data of rank 1 is gone")


if __name__ == "__main__":
    main()
