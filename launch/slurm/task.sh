#!/usr/bin/env bash
# One process of the job: task.sh COMMAND... Of the exit codes of all tasks, srun has only the highest. When one fails,
# the others are stopped and end with 42 or by a signal (above 128), so that an end for good must count higher: 2 becomes
# 202, and all else that a restart does not mend 201.
set -euo pipefail
# Slurm signals the whole process group: the command has its SIGTERM, and this shell waits for its end.
trap : TERM
code=0
"$@" || code=$?
case $code in
  0 | 42) exit "$code" ;;
  2) exit 202 ;;
esac
[ "$code" -gt 128 ] || code=201
exit "$code"
