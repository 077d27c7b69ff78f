"""accelerate launch finetune.py --config configs/quickstart.yaml [--option value …]"""

import sys

from llm_mer.cli.entry_point import run_program


def work() -> int:
    """Train; the options are parsed on the way."""
    from llm_mer.cli.train import finetune

    finetune()
    return 0


if __name__ == "__main__":
    sys.exit(run_program("finetune.py", work, "stopped"))
