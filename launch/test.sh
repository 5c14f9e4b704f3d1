#!/usr/bin/env bash
# Checks the style and runs the tests but for the slow ones, in the environment of launch/local.sh. Arguments go to
# pytest: `launch/test.sh -m slow` runs the slow ones, `launch/test.sh -m ''` all.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
source "$root/launch/environment.sh"
prepare_environment test

cd "$root"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m pytest --numprocesses=2 --dist=loadfile -m 'not slow' "$@"
