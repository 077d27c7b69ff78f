"""``make fuzz-coverage``: one target of ``make fuzz``, its inputs bred by the code that they reach (atheris, libFuzzer).

pip install 'llm-mer[fuzz]'
python tests/security/fuzz_by_coverage.py pickle --seconds 600

An input is bytes that choose among what the target's strategy draws. One that fails is kept as ``crash-…`` in ``--corpus``,
and the command ends with the traceback; inputs that reached something new stay there, and the next run begins with them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

LONGEST = 4096
"""Bytes of an input."""


def main() -> None:
    """Fuzz until the time is over or something is found."""
    import atheris

    with atheris.instrument_imports(include=["llm_mer"]):
        from fuzz_targets import TARGETS
    from hypothesis import HealthCheck, given, settings

    parser = argparse.ArgumentParser(description="coverage-guided fuzzing of one reader", allow_abbrev=False)
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", default="", help="folder of inputs; default: fuzz-corpus/TARGET")
    options = parser.parse_args()
    corpus = Path(options.corpus or f"fuzz-corpus/{options.target}")
    corpus.mkdir(parents=True, exist_ok=True)
    target, strategy = TARGETS[options.target]
    checked = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    drawn = checked(given(strategy)(lambda value: target(value)))
    words = [f"-max_total_time={options.seconds}", f"-max_len={LONGEST}", f"-artifact_prefix={corpus}/", str(corpus)]
    atheris.Setup([sys.argv[0], *words], drawn.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
