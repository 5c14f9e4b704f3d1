#!/usr/bin/env bash
# Checks style and types, and runs all tests except the slow ones, in the environment of launch/local.sh. Further
# arguments go to pytest: `launch/test.sh -m slow` runs the slow tests, `launch/test.sh -m ''` all tests.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
source "$root/launch/environment.sh"
prepare_environment test

cd "$root"
.venv/bin/ruff check .
.venv/bin/ruff format --check .

# The types are checked beside the tests, and reported after them. The variable keeps pyright from looking for updates, the
# option from settings of directories above.
types=$(mktemp)
trap 'rm -f "$types"' EXIT
PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright --project pyproject.toml >"$types" 2>&1 &
pyright=$!

status=0
.venv/bin/python -m pytest --numprocesses=2 --dist=loadfile -m 'not slow' "$@" || status=$?
if ! wait "$pyright"; then
  cat "$types"
  exit 1
fi
exit "$status"
