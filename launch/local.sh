#!/usr/bin/env bash
# Runs simclr on this machine, in an environment that it makes where there is none.
#   launch/local.sh                       the main job: pretrain on scikit-learn's digits, evaluate, print the table
#   launch/local.sh [OPTIONS] ARGUMENTS   simclr ARGUMENTS
# --processes=N   as a small pod: N processes that find each other on the loopback interface
# --devices=M     with M CPU devices each
# --restarts=N    again after exit code 42 or a signal, N times at most (default 0)
# --dry-run       only show the command
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
# shellcheck source=launch/options.sh
source "$root/launch/options.sh"
take_options processes= devices= restarts= dry-run -- "$@"
shift "$taken"

if [ $# -eq 0 ] && [ "$taken" -gt 0 ]; then
  mistake "what shall run with these options? For example: launch/local.sh --processes=2 train --config=... --workdir=..."
fi
if [ $# -eq 0 ]; then
  prepare_environment
  cd "$root"
  .venv/bin/simclr train --config=configs/digits.py --workdir=runs/digits
  exec .venv/bin/simclr evaluate --workdir=runs/digits --protocols=knn,linear --labels=1,5,10,all \
    --baselines=pixels,untrained --config.knn.k=20
fi

command=("$root/.venv/bin/simclr" "$@")
if [ -n "$processes$devices" ]; then
  command=("$root/.venv/bin/python" "$root/launch/processes.py" --processes="${processes:-1}"
    ${devices:+"--devices=$devices"} "${command[@]}")
fi
if [ -n "$restarts" ]; then
  command=("$root/launch/restart.sh" --restarts="$restarts" "${command[@]}")
fi
if [ -n "$dry_run" ]; then
  quoted "${command[@]}"
else
  prepare_environment
  exec "${command[@]}"
fi
