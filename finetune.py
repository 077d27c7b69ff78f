"""accelerate launch finetune.py --config configs/quickstart.yaml [--option value …]"""

import sys

from llm_mer.errors import UserError

if __name__ == "__main__":
    from llm_mer.processes import leave
    from llm_mer.training import finetune

    try:
        finetune()
        leave()
    except UserError as error:
        sys.exit(f"finetune.py: {error}")
    except KeyboardInterrupt:
        sys.exit("finetune.py: stopped")
