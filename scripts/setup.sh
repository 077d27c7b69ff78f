#!/usr/bin/env bash
# Makes .venv and installs the project into it with the pinned versions. Usage: scripts/setup.sh "media,dev"
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-media,dev}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
stamp=.venv/.installed
pins=$(cat pyproject.toml constraints.txt | cksum)
# What is installed already, with these pins, is not installed again.
if [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$pins" ]; then
  missing=
  for extra in ${extras//,/ }; do grep -qx "$extra" "$stamp" || missing=yes; done
  [ -n "$missing" ] || exit 0
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
# uv resolves and unpacks several times faster; it does not read pip's find-links by itself, and compiles only when told to.
# Without compiled files every process would spend some ten seconds on its imports where PYTHONDONTWRITEBYTECODE is set.
if .venv/bin/python -m pip install --quiet uv 2>/dev/null; then
  install() { UV_FIND_LINKS="${PIP_FIND_LINKS:-}" .venv/bin/python -m uv pip install --quiet --compile-bytecode --python .venv/bin/python "$@"; }
else
  install() { .venv/bin/python -m pip install --quiet "$@"; }
fi
install -c constraints.txt "torch==2.13.0" "setuptools>=69" wheel ninja
case ",$extras," in *,deepspeed,*) install -c constraints.txt --no-build-isolation deepspeed ;; esac
install -c constraints.txt -e ".[$extras]"
printf '%s\n' "$pins" ${extras//,/ } > "$stamp"
