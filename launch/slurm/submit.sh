#!/usr/bin/env bash
# Trains on a Slurm cluster whose nodes share a file system, in the environment of this checkout (made at submission).
#   launch/slurm/submit.sh [OPTIONS] train --config=... --workdir=...
# --nodes=N      (default 1)
# --gpus=M       of each node, with one process a GPU; 0: one process a node, on its CPU (default 8)
# --cpus=C       of each process (default 8)
# --name=NAME    of the job; its log is NAME-JOBID.log in the current directory (default simclr)
# --restarts=N   again after exit code 42 or a signal (default 20)
# --dry-run      only show the command
# Anything else of sbatch is said by its environment: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, SBATCH_QOS ...
# `scancel JOBID` ends it for good, with a checkpoint.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." >/dev/null && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
# shellcheck source=launch/options.sh
source "$root/launch/options.sh"
take_options nodes= gpus= cpus= name= restarts= dry-run -- "$@"
shift "$taken"
no_more_options "$@"
: "${nodes:=1}" "${gpus:=8}" "${cpus:=8}" "${name:=simclr}" "${restarts:=20}"
need_number nodes "$nodes"
need_number gpus "$gpus"
need_number cpus "$cpus"
need_number restarts "$restarts"
[ $# -gt 0 ] || mistake "what shall run? For example: $0 --nodes=2 train --config=... --workdir=..."

if [ "$gpus" -gt 0 ]; then
  extra=cuda
  # Of the node, not of the task: jax picks the GPU with the task's number out of all of them.
  tasks=(--ntasks-per-node="$gpus" --gpus-per-node="$gpus")
else
  extra=
  tasks=(--ntasks-per-node=1)
fi
[ -n "$dry_run" ] || prepare_environment "$extra"
# TERM@120 goes to the processes two minutes before the time is up, and not to job.sh.
show_or_run sbatch --parsable --job-name="$name" --output="$name-%j.log" --open-mode=append --nodes="$nodes" "${tasks[@]}" \
  --cpus-per-task="$cpus" --requeue --signal=TERM@120 "$root/launch/slurm/job.sh" "$root" "$restarts" "$@"
