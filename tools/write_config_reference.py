"""Write docs/config.md from the declarations of all config keys: python tools/write_config_reference.py"""

from __future__ import annotations

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from paddlesft.config import RUN_GROUPS  # noqa: E402
from paddlesft.config.reference import markdown  # noqa: E402
from paddlesft.config.renamed import TRAINING_OLD_KEYS  # noqa: E402
from paddlesft.config.verbs import VERB_GROUPS  # noqa: E402

HEAD = """\
# Configuration

<!-- Written by tools/write_config_reference.py. Change the declarations in paddlesft/config/ and run it again. -->

One flat file, JSON or YAML, describes a run. Every key may also be given on the command line, which has the last word:

    paddlesft train configs/smollm2/lora.yaml
    paddlesft train configs/smollm2/lora.yaml learning_rate=1e-3 --max_steps 20 --output_dir=out/try --do_eval

- Names are exact. A name that does not exist is an error that shows the nearest one that does.
- Types are exact: `"8"` is no number, `true` is no integer, `null` is allowed only where the table says so. An integer
  may stand for a number, one value for a list of one. On the command line a list is `a,b` or `[a, b]`.
- YAML is read by the rules of YAML 1.2: `no` is text, `1e-4` is a number.
- All errors of a file come at once, each with its line, before any model is loaded.
- Old names are accepted with a notice. An old and a new name with different values are an error.
- The resolved configuration, with where each value came from, is shown and saved as `run_config.yaml` in `output_dir`.
  That file is a config file itself.

"""


def reference() -> str:
    """Return the text of docs/config.md."""
    parts = [HEAD, "## paddlesft train\n\n", markdown(RUN_GROUPS, TRAINING_OLD_KEYS, level=3)]
    for verb, cls in VERB_GROUPS.items():
        parts += [f"\n## paddlesft {verb}\n\n", markdown({verb: cls}, level=3)]
    return "".join(parts)


if __name__ == "__main__":
    target = REPO / "docs" / "config.md"
    target.write_text(reference(), encoding="utf-8")
    print(f"{target.relative_to(REPO)}: {len(reference().splitlines())} lines")
