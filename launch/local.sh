#!/usr/bin/env bash
# Runs simclr on this machine, in an environment that it makes where there is none.
#   launch/local.sh             the main job: pretrain on scikit-learn's digits, evaluate, print the table
#   launch/local.sh ARGUMENTS   simclr ARGUMENTS
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
source "$root/launch/environment.sh"
prepare_environment

if [ $# -gt 0 ]; then
  exec "$root/.venv/bin/simclr" "$@"
fi
cd "$root"
.venv/bin/simclr train --config=configs/digits.py --workdir=runs/digits
.venv/bin/simclr evaluate --workdir=runs/digits --protocols=knn,linear --labels=1,5,10,all \
  --baselines=pixels,untrained --config.knn.k=20
