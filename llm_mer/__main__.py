"""``python -m llm_mer``: the same as ``llm-mer``."""

import sys

from llm_mer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
