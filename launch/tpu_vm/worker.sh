#!/usr/bin/env bash
# One host of a TPU slice; pod.sh calls this over ssh.
#   install                    the environment, with the locked versions
#   start RESTARTS ARGS...     simclr ARGS in the background, unless it runs
#   state                      `simclr-worker HOST` and: running | exited CODE | stopped | absent
#   stop                       asks it to save and end
# It runs as a service of systemd, which outlives the ssh, keeps the exit code, and when the machine is shut down sends
# SIGTERM and leaves time to save; a terminal multiplexer does only the first.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." >/dev/null && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"

install() {
  # Images with Ubuntu 22.04 have Python 3.10 only; uv brings a newer one.
  if [ ! -x "$root/.venv/bin/python" ] && ! (find_python) >/dev/null 2>&1; then
    python3 -m pip install --quiet --user uv
    "$HOME/.local/bin/uv" venv --quiet --seed --python=3.12 "$root/.venv"
  fi
  prepare_environment tpu
}

start() {
  local restarts=$1
  shift
  rm -f "$root/stopped"
  if [ "$(sub_state)" = running ]; then
    return
  fi
  # What is left of an earlier run keeps the name.
  sudo systemctl stop simclr 2>/dev/null || true
  sudo systemctl reset-failed simclr 2>/dev/null || true
  # mixed: SIGTERM to restart.sh alone, which passes it on; what is left after the time-out is killed.
  sudo systemd-run --quiet --unit=simclr --remain-after-exit --uid="$(id -un)" --working-directory="$root" \
    --property=KillMode=mixed --property=TimeoutStopSec=120 \
    --property=StandardOutput="append:$root/simclr.log" --property=StandardError="append:$root/simclr.log" \
    "$root/launch/restart.sh" --restarts="$restarts" "$root/.venv/bin/simclr" "$@"
}

sub_state() {
  systemctl show simclr --property=SubState --value
}

state() {
  local state
  case $(sub_state) in
    dead) state=absent ;;
    exited) state='exited 0' ;;
    failed) state="exited $(systemctl show simclr --property=ExecMainStatus --value)" ;;
    *) state=running ;;
  esac
  [ ! -e "$root/stopped" ] || state=stopped
  echo "simclr-worker $(hostname) $state"
}

stop() {
  touch "$root/stopped"
  sudo systemctl stop simclr
}

"$@"
