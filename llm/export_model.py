"""Export a model as a static graph; the keys are those of PaddleNLP's export_model.py.

    python llm/export_model.py --model_name_or_path DIR --output_path OUT --dtype float32

`python llm/export_model.py --help` lists all keys.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paddlesft.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("export", sys.argv[1:]))
