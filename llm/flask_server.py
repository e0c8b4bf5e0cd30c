"""Serve a model over HTTP, with a chat page; the keys are those of PaddleNLP's flask_server.py.

    python llm/flask_server.py --model_name_or_path DIR --port 8011 --flask_port 8010 --src_length 1024

`python llm/flask_server.py --help` lists all keys.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paddlesft.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("serve", sys.argv[1:]))
