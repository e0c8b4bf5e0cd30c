"""Fine-tune a model: python llm/finetune.py CONFIG [key=value ...], also under paddle.distributed.launch."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paddlesft.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("train", sys.argv[1:]))
