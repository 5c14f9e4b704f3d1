#!/usr/bin/env bash
# Runs simclr on this machine. The first run installs it into the virtual environment .venv.
#   launch/local.sh                       pretrains on scikit-learn's digits, evaluates and prints the results
#   launch/local.sh [OPTIONS] ARGUMENTS   runs simclr ARGUMENTS
# Options:
#   --processes=N   number of processes, which form one job over the loopback interface (default 1)
#   --devices=M     CPU devices per process
#   --restarts=N    largest number of restarts after exit code 42 or death by a signal (default 0)
#   --extra=NAME    also installs this extra: cuda12 (NVIDIA driver 525 or newer), cuda13 (580 or newer), tpu or gcs
#                   (files on gs://). Those of earlier calls stay.
#   --dry-run       only prints the command
# The environment has the newest of Python 3.13, 3.12 and 3.11 on the PATH or among pyenv's versions. SIMCLR_PYTHON names
# another one. `launch/local.sh train --help` explains the options of a command of simclr.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
# shellcheck source=launch/options.sh
source "$root/launch/options.sh"
take_options processes= devices= restarts= extra= dry-run -- "$@"
shift "$taken"
[ "${1:-}" != --help ] || show_help
case $extra in
  '' | cuda12 | cuda13 | tpu | gcs) ;;
  *) mistake "--extra=$extra must be cuda12, cuda13, tpu or gcs" ;;
esac

if [ $# -eq 0 ] && [ -n "$processes$devices$restarts$dry_run" ]; then
  mistake "these options need arguments for simclr; for example: $0 --processes=2 train --config=... --workdir=..."
fi
if [ $# -eq 0 ]; then
  prepare_environment tensorflow ${extra:+"$extra"}
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
  prepare_environment tensorflow ${extra:+"$extra"}
  exec "${command[@]}"
fi
