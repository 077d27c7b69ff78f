#!/usr/bin/env bash
# On a machine with a GPU: the correctness tests that need one, then training and inference at real sizes.
#   benchmarks/gpu.sh [options of benchmarks/gpu.py]
# PYTHON names another interpreter than the one `make setup` made.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

"$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "benchmarks/gpu.sh: torch sees no CUDA device here")' || exit 1

LLM_MER_TEST_DEVICE=cuda "$python" -m pytest -m gpu tests/gpu
tests=$?
"$python" benchmarks/gpu.py "$@" || exit 1
exit "$tests"
