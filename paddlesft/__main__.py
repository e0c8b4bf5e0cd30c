"""``python -m paddlesft`` is the ``paddlesft`` command."""

import sys

from paddlesft.cli.main import main

sys.exit(main())
