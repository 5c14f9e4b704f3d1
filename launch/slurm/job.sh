#!/usr/bin/env bash
# The batch script: job.sh ROOT RESTARTS ARGUMENTS... runs simclr ARGUMENTS in every task of the allocation, and puts the
# job back into the queue after an end that a restart can mend. (Slurm runs a copy of this file: ROOT says where it was.)
set -euo pipefail
root=$1
restarts=$2
shift 2

# scancel and preemption reach this shell as well, the end of the time only the tasks: after the former the job must not
# come back (scancel), or does so without help (preemption).
stopped=
trap 'stopped=true' TERM

code=0
# srun takes the number of CPUs from nothing but its own option since Slurm 22.05.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  "$root/launch/slurm/task.sh" "$root/.venv/bin/simclr" "$@" || code=$?

# task.sh marks an end for good with 201 and 202.
case $code in
  201 | 202) exit $((code - 200)) ;;
esac
if [ -n "$stopped" ] || { [ "$code" -ne 42 ] && [ "$code" -le 128 ]; }; then
  exit "$code"
fi
if [ "${SLURM_RESTART_COUNT:-0}" -ge "$restarts" ]; then
  echo "job.sh: exit code $code, and no restart is left of $restarts" >&2
  exit "$code"
fi
echo "job.sh: exit code $code; back into the queue (restart $((${SLURM_RESTART_COUNT:-0} + 1)) of $restarts)" >&2
scontrol requeue "$SLURM_JOB_ID"
