#!/usr/bin/env bash
# Trains on one or several slices of Cloud TPU VMs. They form one queued resource, which is recreated after a preemption.
#   launch/tpu_vm/pod.sh run --name=NAME --zone=ZONE --topology=v5e:4x8 [OPTIONS] train --config=... --workdir=gs://...
# Commands:
#   run ARGUMENTS     creates the slices, installs, starts simclr ARGUMENTS, and supervises it until it has ended. Ctrl-C
#                     ends only the supervision, which the same command resumes. The slices are not deleted at the end.
#                     To delete them: pod.sh run ... && pod.sh delete ...
#   create            requests the queued resource and waits for it
#   install           copies the tracked files of this checkout to all hosts and installs them
#   start ARGUMENTS   starts simclr ARGUMENTS on all hosts
#   status            shows the state of the resource and of all hosts
#   logs              follows the output of process 0
#   stop              stops the program on all hosts, after a checkpoint
#   delete            deletes the queued resource
# Options (an environment variable such as SIMCLR_ZONE for --zone sets the default):
#   --name=NAME              name of the queued resource
#   --zone=ZONE              zone of Google Cloud, optionally with --project=PROJECT
#   --topology=v5e:4x8       kind and shape of the TPU slice, as for `simclr plan`
#   --slices=N               number of slices, connected by the network of the data centre (default 1)
#   --spot                   uses spot capacity, which is cheaper and may be preempted
#   --runtime-version=NAME   image of the TPU VM (default: the one that fits the kind of TPU)
#   --restarts=N             largest number of restarts in a row, of the program and of the resource (default 20)
#   --poll=SECONDS           time between two checks of the state (default 30)
#   --platform=OPTION        passes an option on to `gcloud ... create`: --platform=--reserved, --platform=--network=NAME,
#                            --platform=--service-account=ACCOUNT, --platform=--labels=team=vision ... May be repeated
#   --ssh=OPTION             passes an option on to `gcloud ... ssh` and `scp`. May be repeated. Slices without external
#                            addresses need --platform=--internal-ips --ssh=--tunnel-through-iap
#   --env=NAME=VALUE         environment variable of the program on all hosts. May be repeated
#   --dry-run                only prints the commands
# shellcheck disable=SC2154  # take_options sets the variables
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." >/dev/null && pwd)
# shellcheck source=launch/options.sh
source "$root/launch/options.sh"
# shellcheck source=launch/tpu.sh
source "$root/launch/tpu.sh"
worker=simclr/launch/tpu_vm/worker.sh

main() {
  no_more_options "$@"
  local command=${1:-}
  [ $# -eq 0 ] || shift
  take_options name= zone= project= topology= slices= spot runtime-version= restarts= poll= archive= dry-run \
    platform=+ ssh=+ env=+ -- "$@"
  options=("${@:1:taken}")
  shift "$taken"
  no_more_options "$@"
  : "${slices:=1}" "${restarts:=20}" "${poll:=30}"
  need_number slices "$slices"
  need_number restarts "$restarts"
  need_pairs env ${env[@]+"${env[@]}"}
  case $command in
    run | create | once) need name zone topology && describe_slice "$topology" ;;
    install | start | status | logs | stop | delete) need name zone ;;
    *) mistake "unknown command '$command'; choose from run, create, install, start, status, logs, stop, delete (see $0 --help)" ;;
  esac
  case $command in
    run | start) need_bucket "$@" ;;
  esac
  "$command" "$@"
}

# --- The steps ---

queued_resources() {
  show_or_run gcloud compute tpus queued-resources "$@" --zone="$zone" ${project:+"--project=$project"} --quiet
}

# on_workers LINE: runs a line of shell on every host of every slice.
on_workers() {
  queued_resources ssh "$name" --node=all --worker=all --command="$1" ${ssh[@]+"${ssh[@]}"}
}

request() {
  local nodes=(--node-id="$name")
  if [ "$slices" -gt 1 ]; then
    nodes=(--node-prefix="$name" --node-count="$slices")
  fi
  queued_resources create "$name" "${nodes[@]}" "${slice_flags[@]}" --runtime-version="$runtime_version" ${spot:+--spot} \
    ${platform[@]+"${platform[@]}"}
}

describe() {
  queued_resources describe "$name" --format='value(state.state)'
}

create() {
  if [ -n "$dry_run" ]; then
    request
    describe
  else
    wait_until_active
  fi
}

# pack: packs the tracked files of the working tree into $archive, a new file that nobody else can have prepared.
pack() {
  archive=${TMPDIR:-/tmp}/simclr-XXXXXX
  [ -n "$dry_run" ] || archive=$(mktemp "$archive")
  local list=(git -C "$root" ls-files -z) tar=(tar -C "$root" --null -T - -czf "$archive")
  if [ -n "$dry_run" ]; then
    echo "$(quoted "${list[@]}") | $(quoted "${tar[@]}")"
  else
    "${list[@]}" | "${tar[@]}"
  fi
}

install() {
  if [ -z "$archive" ]; then
    pack
    [ -n "$dry_run" ] || trap 'rm -f "$archive"' EXIT
  fi
  queued_resources scp "$archive" "$name:simclr.tar.gz" --node=all --worker=all ${ssh[@]+"${ssh[@]}"}
  on_workers "mkdir -p simclr && tar -xzf simclr.tar.gz -C simclr && $worker install"
}

start() {
  # The words are quoted for the shell on the other side of the ssh.
  on_workers "$(quoted "$worker" start "$restarts" ${env[@]+"${env[@]}"} -- "$@")"
}

worker_states() {
  on_workers "if [ -e $worker ]; then $worker state; else echo simclr-worker \$(hostname) absent; fi"
}

status() {
  describe
  worker_states
}

logs() {
  queued_resources ssh "$name" --node=0 --worker=0 --command='tail -n 100 -F simclr/simclr.log' ${ssh[@]+"${ssh[@]}"}
}

stop() {
  on_workers "$worker stop"
}

delete() {
  queued_resources delete "$name" --force
}

# --- Supervision from creation to the end of the program ---

run() {
  if [ -n "$dry_run" ]; then
    create
    install
    start "$@"
    status
    return
  fi
  # A wrong first request fails at once. Later requests are repeated.
  case $(resource_state) in
    absent) request ;;
    unknown) exit 1 ;;
  esac
  pack
  # The pipe closes when this shell and all its children have ended, in whatever way. Then the archive is removed.
  exec 7> >(trap '' INT HUP TERM && cat >/dev/null && rm -f "$archive")
  exec "$root/launch/restart.sh" --restarts="$restarts" "$0" once "${options[@]}" --archive="$archive" "$@"
}

# once ARGUMENTS...: one life of the slices. It ends with 42 if a slice or a host was lost, so that restart.sh begins a
# new life.
once() {
  wait_until_active || return
  if [ "$(worker_states | grep -c ' running$')" -lt $((hosts * slices)) ]; then
    { install && start "$@"; } || lost_or_failed || return
  fi
  watch
}

# lost_or_failed: exit code after a failure on the hosts: 42 if the hosts are lost, otherwise 1, because a restart would
# fail again.
lost_or_failed() {
  nap
  [ "$(resource_state)" != ACTIVE ] || return 1
  return 42
}

wait_until_active() {
  local state
  while :; do
    state=$(resource_state)
    tell "$state"
    case $state in
      ACTIVE) return ;;
      absent) request || return 42 ;;
      SUSPENDED) delete || return 42 ;;
      FAILED)
        delete
        return 42
        ;;
      *) nap ;;
    esac
  done
}

watch() {
  local state answers verdict
  while :; do
    state=$(resource_state)
    answers=
    case $state in
      ACTIVE) answers=$(worker_states) || true ;;
      unknown) ;;
      *)
        tell "$state"
        return 42
        ;;
    esac
    verdict=$(judge "$answers")
    tell "$verdict"
    case $verdict in
      finished) return ;;
      lost) return 42 ;;
      stopped) return 1 ;;
      failed*)
        # The other hosts wait for the failed one, so they are stopped.
        on_workers "tail -n 20 simclr/simclr.log; $worker stop" || true
        return "${verdict##* }"
        ;;
    esac
    nap
  done
}

# judge ANSWERS: combines the states of all workers into one.
judge() {
  local code finished=0 lost=
  while read -r code; do
    if [ "$code" -eq 0 ]; then
      finished=$((finished + 1))
    elif [ "$code" -eq 42 ] || [ "$code" -gt 128 ]; then
      lost=true
    else
      echo "failed with exit code $code"
      return
    fi
  done < <(sed -n 's/^simclr-worker .* exited //p' <<<"$1")
  case $1 in
    *' stopped'*)
      echo stopped
      return
      ;;
    *' absent'*) lost=true ;;
  esac
  if [ -n "$lost" ]; then
    echo lost
  elif [ "$finished" -eq $((hosts * slices)) ]; then
    echo finished
  else
    echo running
  fi
}

# resource_state: prints the state of the queued resource (ACTIVE, SUSPENDED ...), `absent` if there is none, or
# `unknown` if gcloud fails.
resource_state() {
  local answer errors
  errors=$(mktemp)
  if answer=$(describe 2>"$errors"); then
    echo "$answer"
  elif grep -q NOT_FOUND "$errors"; then
    echo absent
  else
    cat "$errors" >&2
    echo unknown
  fi
  rm -f "$errors"
}

told=
# tell NEWS: prints a state if it has changed.
tell() {
  [ "$1" = "$told" ] || echo "$(date '+%F %T') $name: $1" >&2
  told=$1
}

# nap: waits. A signal ends `wait` at once, but not a sleep in the foreground.
nap() {
  sleep "$poll" &
  wait $!
}

main "$@"
