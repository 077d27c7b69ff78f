"""``make fuzz``: every target in rounds until the time is over, from a seed that is printed.

python tests/security/fuzz.py --seconds 60 --seed 1 [TARGET …]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from fuzz_targets import TARGETS  # noqa: E402
from hypothesis import HealthCheck, given, seed, settings  # noqa: E402

EXAMPLES = 200


def run_target(name: str, number: int, examples: int = EXAMPLES) -> None:
    """Draw so many inputs for a target from a seed. Raises what the target raises, the input in a note."""
    target, strategy = TARGETS[name]
    checked = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    seed(number)(checked(given(strategy)(lambda drawn: target(drawn))))()


def main() -> int:
    """Fuzz; the exit code is 1 where a target failed."""
    parser = argparse.ArgumentParser(description="fuzz what reads other people's files", allow_abbrev=False)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"unknown targets {', '.join(sorted(unknown))}; choose from {', '.join(TARGETS)}")
    end, number = time.monotonic() + options.seconds, options.seed
    while time.monotonic() < end:
        for name in names:
            try:
                run_target(name, number)
            except Exception:
                print(f"{name} failed with --seed {number}", file=sys.stderr)
                raise
        number += 1
    print(f"seeds {options.seed} to {number - 1}, {EXAMPLES} inputs each for {', '.join(names)}: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
