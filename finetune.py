"""accelerate launch finetune.py --config configs/quickstart.yaml [--option value …]"""

import sys

from llm_mer.errors import UserError

if __name__ == "__main__":
    from llm_mer.cli.train import finetune
    from llm_mer.distributed.process_group import shutdown_process_group

    try:
        finetune()
        shutdown_process_group()
    except UserError as error:
        print(f"finetune.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit("finetune.py: stopped")
