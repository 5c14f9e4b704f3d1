#!/usr/bin/env bash
# Checks the style and runs all tests except the slow ones, in the environment of launch/local.sh. Further arguments go
# to pytest: `launch/test.sh -m slow` runs the slow tests, `launch/test.sh -m ''` all tests.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
source "$root/launch/environment.sh"
prepare_environment test

cd "$root"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m pytest --numprocesses=2 --dist=loadfile -m 'not slow' "$@"
