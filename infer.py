"""python infer.py --checkpoint runs/x --video clip.mp4 --text "…"  (see --help)"""

import sys

from llm_mer.cli.main import run_command

if __name__ == "__main__":
    said = "interrupted; with --output, the same command goes on from here"
    sys.exit(run_command("infer", sys.argv[1:], "infer.py", said))
