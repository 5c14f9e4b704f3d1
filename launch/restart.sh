#!/usr/bin/env bash
# Runs a command, and restarts it after exit code 42 (preempted, or another process of the job was lost) or death by a
# signal. It does not restart after 0, 1, 2 or any other exit code.
#   launch/restart.sh [OPTIONS] COMMAND ARGUMENTS...
# Options:
#   --restarts=N        largest number of restarts in a row (default 20)
#   --pause=SECONDS     pause before the first restart. Each further pause is twice as long, up to 64 times (default 5)
#   --lasting=SECONDS   a run of at least this length resets the number of restarts and the pause (default 600)
# SIGTERM, SIGINT and SIGHUP go to the command. After one of them the command is not restarted.
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
[ $# -gt 0 ] || mistake "give a command to run; see $0 --help"

stopped=
child=
interrupted=
pass_on() {
  stopped=$1
  interrupted=true
  [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null || true
}
trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT

# guard: reads the number of the running command, or nothing between two commands. At the end of its input this shell has
# ended. If it was killed, a command still runs. The command gets SIGTERM, and its group SIGKILL after two minutes.
guard() {
  trap '' INT HUP TERM
  local running='' line second
  while read -r line; do running=$line; done
  [ -n "$running" ] && kill -s TERM "$running" || return 0
  for ((second = 0; second < 120; second++)); do
    kill -s 0 "$running" || break
    sleep 1
  done
  kill -s KILL -- "-$running" || true
}

# attend COMMAND...: runs a command to its end and sets $code. Meanwhile this shell can receive signals.
attend() {
  "$@" </dev/null 8>&- &
  child=$!
  echo "$child" >&8
  # A signal may have arrived before there was a child to pass it on to.
  [ -z "$stopped" ] || kill -s "$stopped" "$child" 2>/dev/null || true
  interrupted=true
  while [ -n "$interrupted" ]; do
    # A signal ends `wait` early. The child still runs then.
    interrupted=
    code=0
    wait "$child" || code=$?
  done
  child=
  echo >&8
}

exec 8> >(guard >/dev/null 2>&1)
# Without job control, background commands of bash ignore SIGINT. With it, each has its own process group.
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
    echo "restart.sh: exit code $code, and all $restarts restarts are used up" >&2
    exit "$code"
  fi
  echo "restart.sh: exit code $code; restart $count of $restarts in $next_pause s" >&2
  ended_with=$code
  attend sleep "$next_pause"
  [ -z "$stopped" ] || exit "$ended_with"
  [ "$next_pause" -ge $((64 * pause)) ] || next_pause=$((2 * next_pause))
done
