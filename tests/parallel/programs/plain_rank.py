"""A rank without paddle: ``plain_rank.py WHAT``. Rank 1 may end badly; the others wait, some of them stubbornly."""

from __future__ import annotations

import os
import signal
import sys
import time

from paddlesft.parallel.rank_ends import FAILED, last_words, leave_last_words
from paddlesft.parallel.rank_terminal import rank_terminal

WHAT, RANK = sys.argv[1], os.environ["PADDLE_TRAINER_ID"]
print(f"rank {RANK} of {os.environ['PADDLE_TRAINERS_NUM']} pid {os.getpid()}", flush=True)
for name in ("CUDA_VISIBLE_DEVICES", "FLAGS_selected_gpus", "PADDLE_DISTRI_BACKEND", "OMP_NUM_THREADS", "RANK"):
    print(f"{name}={os.environ.get(name)}", flush=True)
if RANK == "0":
    terminal = rank_terminal()
    terminal.stdout.write("\x1b[1mübrig\x1b[0m\n")
    terminal.stderr.write(f"\rlive {terminal.width} {terminal.stdout.isatty()} {terminal.stderr.isatty()}")
if WHAT == "well":
    sys.exit(0)
if WHAT == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if RANK == "1" and WHAT == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if RANK == "1" and WHAT == "silent":
    sys.exit(7)
if RANK == "1" and WHAT == "words":
    leave_last_words(last_words(FAILED, "ValueError: gone", "Traceback ...\nValueError: gone"))
    sys.exit(1)
if RANK == "0" and WHAT == "words":
    time.sleep(0.2)
    leave_last_words(last_words(FAILED, "MissingRank: Rank 0 waits", "Traceback ...\nMissingRank: Rank 0 waits"))
    sys.exit(1)
time.sleep(300)
