#!/usr/bin/env bash
# One process of the job: task.sh COMMAND... srun returns only the highest exit code of all tasks. When one task fails,
# Slurm stops the others, which end with 42 or by a signal (above 128). So exit codes without restart must be higher
# than these: 2 becomes 202, and all others become 201.
set -euo pipefail
# Slurm signals the whole process group. The command receives SIGTERM itself, and this shell waits for its end.
trap : TERM
code=0
"$@" || code=$?
case $code in
  0 | 42) exit "$code" ;;
  2) exit 202 ;;
esac
[ "$code" -gt 128 ] || code=201
exit "$code"
