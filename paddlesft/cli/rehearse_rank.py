"""One process of a rehearsal: ``paddlesft train``, with a record of how gradients were clipped.

    python -m paddlesft.cli.rehearse_rank CONFIG.json

``paddlesft rehearse`` starts it, alone and as ranks. The first rank writes ``clipping.json`` beside the run's log.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Train as a config says.

    Args:
        argv: the config file, a JSON object.

    Returns:
        The exit code.
    """
    if os.environ.get("PADDLE_TRAINER_ID", "0") == "0":
        from paddlesft.training.clip_record import record_clipping
        from paddlesft.training.rehearsal_runs import CLIPPING

        output_dir = Path(json.loads(Path(argv[0]).read_text(encoding="utf-8"))["output_dir"])
        factors: list[float] = []

        def note(factor: float) -> None:
            factors.append(factor)
            output_dir.mkdir(parents=True, exist_ok=True)
            (output_dir / CLIPPING).write_text(json.dumps(factors), encoding="utf-8")

        record_clipping(note)
    from paddlesft.cli.main import run_verb

    return run_verb("train", argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
