"""python infer.py --checkpoint runs/x --video clip.mp4 --text "…"  (see --help)"""

import sys

from llm_mer.cli.options import parse
from llm_mer.errors import UserError

if __name__ == "__main__":
    from llm_mer.cli.infer import infer
    from llm_mer.distributed.process_group import shutdown_process_group
    from llm_mer.inference.inputs import InferConfig

    try:
        infer(
            parse(
                InferConfig, sys.argv[1:], "infer.py", "Answers about clips, text, features or a whole manifest, as JSONL."
            )
        )
        shutdown_process_group()
    except UserError as error:
        sys.exit(f"infer.py: {error}")
    except KeyboardInterrupt:
        print("\ninfer.py: interrupted; with --output, the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(130)
