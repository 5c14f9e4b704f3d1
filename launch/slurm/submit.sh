#!/usr/bin/env bash
# Submits a training to a Slurm cluster whose nodes share a file system. The job uses the virtual environment of this
# checkout, which the submission installs.
#   launch/slurm/submit.sh [OPTIONS] train --config=... --workdir=...
# Options:
#   --nodes=N      number of nodes (default 1)
#   --gpus=M       GPUs per node, with one process per GPU (default 8). 0: one process per node, on its CPU
#   --cpus=C       CPUs per process (default 8)
#   --name=NAME    name of the job (default simclr). Its log is NAME-JOBID.log in the current directory
#   --restarts=N   largest number of restarts after exit code 42 or death by a signal (default 20)
#   --dry-run      only prints the command
# Environment variables set all other options of sbatch: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, SBATCH_QOS ...
# `scancel JOBID` ends the job without restart, after a checkpoint.
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
[ $# -gt 0 ] || mistake "give the arguments of simclr; for example: $0 --nodes=2 train --config=... --workdir=..."

if [ "$gpus" -gt 0 ]; then
  extra=cuda
  # The GPUs belong to the node, not to a task. JAX selects the GPU with the number of the task from all of them.
  tasks=(--ntasks-per-node="$gpus" --gpus-per-node="$gpus")
else
  extra=
  tasks=(--ntasks-per-node=1)
fi
[ -n "$dry_run" ] || prepare_environment "$extra"
# TERM@120 signals the processes two minutes before the time limit. It does not signal job.sh.
show_or_run sbatch --parsable --job-name="$name" --output="$name-%j.log" --open-mode=append --nodes="$nodes" "${tasks[@]}" \
  --cpus-per-task="$cpus" --requeue --signal=TERM@120 "$root/launch/slurm/job.sh" "$root" "$restarts" "$@"
