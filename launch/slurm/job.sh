#!/usr/bin/env bash
# The batch script: job.sh ROOT RESTARTS NAME=VALUE... -- ARGUMENTS... runs simclr ARGUMENTS with these variables in every
# task of the allocation. After exit code 42 or death by a signal it puts the job back into the queue. ROOT is the
# checkout, because Slurm runs a copy of this file from elsewhere.
set -euo pipefail
root=$1
restarts=$2
shift 2
variables=()
while [ "$1" != -- ]; do
  variables+=("$1")
  shift
done
shift

# scancel and preemption signal this shell too. Then it must not requeue the job: a cancelled job stays cancelled, and
# Slurm itself requeues a preempted one. The time limit signals only the tasks.
stopped=
trap 'stopped=true' TERM

code=0
# Since Slurm 22.05, srun takes the number of CPUs only from its own option.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  "$root/launch/slurm/task.sh" env ${variables[@]+"${variables[@]}"} "$root/.venv/bin/simclr" "$@" || code=$?

# task.sh turns exit codes without restart into 201 and 202.
case $code in
  201 | 202) exit $((code - 200)) ;;
esac
if [ -n "$stopped" ] || { [ "$code" -ne 42 ] && [ "$code" -le 128 ]; }; then
  exit "$code"
fi
if [ "${SLURM_RESTART_COUNT:-0}" -ge "$restarts" ]; then
  echo "job.sh: exit code $code, and all $restarts restarts are used up" >&2
  exit "$code"
fi
echo "job.sh: exit code $code; the job goes back into the queue (restart $((${SLURM_RESTART_COUNT:-0} + 1)) of $restarts)" >&2
scontrol requeue "$SLURM_JOB_ID"
