"""Answer the rows of a data file with a model; the keys are those of PaddleNLP's predictor.

    python llm/predictor.py --model_name_or_path DIR --data_file dev.json --output_file output.json --batch_size 8

`python llm/predictor.py --help` lists all keys.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paddlesft.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("predict", sys.argv[1:]))
