#!/usr/bin/env bash
# Runs on one host of a TPU slice. pod.sh calls this script over ssh.
#   install                    installs the virtual environment with the locked versions
#   start RESTARTS NAME=VALUE... -- ARGS...
#                              starts simclr ARGS in the background with these variables, unless it already runs
#   state                      prints `simclr-worker HOST` and one of: running | exited CODE | stopped | absent
#   stop                       makes the program save and end
# The program runs as a service of systemd. A service survives the end of the ssh and keeps the exit code. When the
# machine shuts down, it receives SIGTERM and has time to save. A terminal multiplexer only survives the ssh.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." >/dev/null && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"

install() {
  # Images with Ubuntu 22.04 have only Python 3.10. uv installs a newer one.
  if ! (find_python) >/dev/null 2>&1; then
    python3 -m pip install --quiet --user uv
    "$HOME/.local/bin/uv" python install --quiet 3.13
    SIMCLR_PYTHON=$("$HOME/.local/bin/uv" python find 3.13)
  fi
  prepare_environment tensorflow tpu
}

start() {
  local restarts=$1 variables=() command=()
  shift
  while [ "$1" != -- ]; do
    variables+=(--setenv="$1")
    shift
  done
  shift
  rm -f "$root/stopped"
  if [ "$(sub_state)" = running ]; then
    return
  fi
  # A finished service of an earlier run still occupies the name.
  sudo systemctl stop simclr 2>/dev/null || true
  sudo systemctl reset-failed simclr 2>/dev/null || true
  # systemd replaces $NAME in the words of a command. It reads $$ as a plain $.
  command=("$root/launch/restart.sh" --restarts="$restarts" "$root/.venv/bin/simclr" "$@")
  # KillMode=mixed sends SIGTERM only to restart.sh, which passes it on. After the timeout the rest is killed.
  sudo systemd-run --quiet --unit=simclr --remain-after-exit --uid="$(id -un)" --working-directory="$root" \
    --property=KillMode=mixed --property=TimeoutStopSec=120 \
    --property=StandardOutput="append:$root/simclr.log" --property=StandardError="append:$root/simclr.log" \
    ${variables[@]+"${variables[@]}"} "${command[@]//\$/\$\$}"
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
