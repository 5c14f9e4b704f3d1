#!/usr/bin/env bash
# Runs a command, and runs it again after an end that a restart can mend: exit code 42 (preempted, or another process of
# the job was lost) and death by a signal. Never after 0, 1, 2 or any other code.
#   launch/restart.sh [--restarts=20] [--pause=5] [--lasting=600] COMMAND ARGUMENTS...
# --restarts=N        at most so many in a row
# --pause=SECONDS     before the first; each further one waits twice as long, up to 64 times this
# --lasting=SECONDS   after a run that lasted this long, count and pauses begin anew
# SIGTERM, SIGINT and SIGHUP go to the command, and then its end is the end.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" >/dev/null && pwd)
# shellcheck source=launch/options.sh
source "$here/options.sh"
take_options restarts= pause= lasting= -- "$@"
shift "$taken"
no_more_options "$@"
: "${restarts:=20}" "${pause:=5}" "${lasting:=600}"
need_number restarts "$restarts"
need_number pause "$pause"
need_number lasting "$lasting"
[ $# -gt 0 ] || mistake "which command? See $0 --help"

stopped=
child=
interrupted=
pass_on() {
  stopped=true
  interrupted=true
  [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null || true
}
trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT

# attend COMMAND...: runs it to its end, reachable by signals meanwhile; sets $code.
attend() {
  "$@" </dev/null &
  child=$!
  # A signal may have come while there was no child to pass it on to.
  [ -z "$stopped" ] || kill -s TERM "$child" 2>/dev/null || true
  interrupted=true
  while [ -n "$interrupted" ]; do
    # A signal ends `wait` early, and then the child has yet to end.
    interrupted=
    code=0
    wait "$child" || code=$?
  done
  child=
}

# Without job control, bash starts background commands deaf to SIGINT; with it, in a process group of their own.
set -m
count=0
next_pause=$pause
while :; do
  started=$SECONDS
  attend "$@"
  if [ -n "$stopped" ] || { [ "$code" -ne 42 ] && [ "$code" -le 128 ]; }; then
    exit "$code"
  fi
  if [ $((SECONDS - started)) -ge "$lasting" ]; then
    count=0
    next_pause=$pause
  fi
  count=$((count + 1))
  if [ "$count" -gt "$restarts" ]; then
    echo "restart.sh: exit code $code, and no restart is left of $restarts" >&2
    exit "$code"
  fi
  echo "restart.sh: exit code $code; again in $next_pause s (restart $count of $restarts)" >&2
  ended_with=$code
  attend sleep "$next_pause"
  [ -z "$stopped" ] || exit "$ended_with"
  [ "$next_pause" -ge $((64 * pause)) ] || next_pause=$((2 * next_pause))
done
