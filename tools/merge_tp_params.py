"""Merge the files of tensor- or pipeline-parallel ranks; the arguments are those of PaddleNLP's tool of this name.

    python tools/merge_tp_params.py --model_name_or_path CHECKPOINT --output_path DIR

`python tools/merge_tp_params.py --help` lists all keys.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paddlesft.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("merge-shards", sys.argv[1:]))
