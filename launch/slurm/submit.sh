#!/usr/bin/env bash
# Submits a training to a Slurm cluster whose nodes share a file system. The job uses the virtual environment of this
# checkout, which the submission installs.
#   launch/slurm/submit.sh [OPTIONS] train --config=... --workdir=...
# Options:
#   --nodes=N           number of nodes (default 1)
#   --gpus=M            GPUs per node, with one process per GPU (default 8). 0: one process per node, on its CPU
#   --cpus=C            CPUs per process (default 8)
#   --name=NAME         name of the job (default simclr). Its log is NAME-JOBID.log in the current directory
#   --restarts=N        largest number of restarts after exit code 42 or death by a signal (default 20)
#   --extra=NAME        JAX for the GPUs: cuda12 (driver 525 or newer, the default) or cuda13 (580 or newer)
#   --platform=OPTION   passes an option on to sbatch: --platform=--partition=gpu, --platform=--account=me ... May be
#                       repeated. Environment variables such as SBATCH_PARTITION also set them
#   --env=NAME=VALUE    environment variable of the program in all tasks. May be repeated
#   --dry-run           only prints the command
# `scancel JOBID` ends the job without restart, after a checkpoint.
# shellcheck disable=SC2154  # take_options sets the variables
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." >/dev/null && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
# shellcheck source=launch/options.sh
source "$root/launch/options.sh"
take_options nodes= gpus= cpus= name= restarts= extra= dry-run platform=+ env=+ -- "$@"
shift "$taken"
no_more_options "$@"
: "${nodes:=1}" "${gpus:=8}" "${cpus:=8}" "${name:=simclr}" "${restarts:=20}" "${extra:=cuda12}"
need_number nodes "$nodes"
need_number gpus "$gpus"
need_number cpus "$cpus"
need_number restarts "$restarts"
need_pairs env ${env[@]+"${env[@]}"}
case $extra in
  cuda12 | cuda13) ;;
  *) mistake "--extra=$extra must be cuda12 or cuda13" ;;
esac
[ $# -gt 0 ] || mistake "give the arguments of simclr; for example: $0 --nodes=2 train --config=... --workdir=..."

if [ "$gpus" -gt 0 ]; then
  # The GPUs belong to the node, not to a task. JAX selects the GPU with the number of the task from all of them.
  tasks=(--ntasks-per-node="$gpus" --gpus-per-node="$gpus")
else
  extra=
  tasks=(--ntasks-per-node=1)
fi
[ -n "$dry_run" ] || prepare_environment tensorflow ${extra:+"$extra"}
# TERM@120 signals the processes two minutes before the time limit. It does not signal job.sh.
show_or_run sbatch --parsable --job-name="$name" --output="$name-%j.log" --open-mode=append --nodes="$nodes" "${tasks[@]}" \
  --cpus-per-task="$cpus" --requeue --signal=TERM@120 ${platform[@]+"${platform[@]}"} \
  "$root/launch/slurm/job.sh" "$root" "$restarts" ${env[@]+"${env[@]}"} -- "$@"
