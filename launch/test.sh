#!/usr/bin/env bash
# Checks style and types, and runs the tests, in the environment of launch/local.sh.
#   launch/test.sh                 all tests except the slow ones and those of launch/matrix.sh
#   launch/test.sh -m slow         the slow tests
#   launch/test.sh -m ''           all tests
#   launch/test.sh ARGUMENTS       with further arguments for pytest: paths, -k NAME, -x ...
# launch/matrix.sh runs some of them in other environments.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
# shellcheck source=launch/options.sh
source "$root/launch/options.sh"
[ "${1:-}" != --help ] || show_help
prepare_environment tensorflow export test

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
.venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder -m 'not slow and not smoke' "$@" || status=$?
if ! wait "$pyright"; then
  cat "$types"
  exit 1
fi
exit "$status"
