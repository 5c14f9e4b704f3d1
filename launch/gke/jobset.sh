#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster. The cluster must have JobSet installed, and kubectl must be connected to it.
#   launch/gke/jobset.sh apply --name=NAME --topology=v5e:4x8 --image=IMAGE [OPTIONS] train --config=... --workdir=gs://...
# Commands:
#   image              builds the container image of this checkout and pushes it
#   render ARGUMENTS   prints the manifest of a job that runs simclr ARGUMENTS
#   apply ARGUMENTS    submits this job. The cluster restarts it after a preemption, but not after exit codes 1 and 2
#   xpk ARGUMENTS      prints the command that submits the same job by XPK to a cluster made by XPK
#   status             shows the job and its pods
#   logs               follows the output of process 0
#   delete             deletes the job
# Options (an environment variable such as SIMCLR_IMAGE for --image sets the default):
#   --name=NAME                name of the job
#   --image=REGISTRY/NAME:TAG  container image
#   --topology=v5e:4x8         kind and shape of the TPU slice, as for `simclr plan`
#   --slices=N                 number of slices, connected by the network of the data centre (default 1)
#   --spot                     uses spot nodes
#   --restarts=N               largest number of restarts (default 20)
#   --namespace=NAME           Kubernetes namespace (default `default`)
#   --service-account=NAME     Kubernetes account with write access to the bucket (default `default`)
#   --cluster=NAME             cluster for xpk, optionally with --project=PROJECT and --zone=ZONE
#   --platform=OPTION          passes an option on to the program that does the command: docker build, kubectl or XPK. May
#                              be repeated: --platform=--context=NAME
#   --label=NAME=VALUE         label of the job and its pods. May be repeated
#   --node-selector=NAME=VALUE   label of the nodes to use, such as cloud.google.com/reservation-name=NAME. May be repeated
#   --env=NAME=VALUE           environment variable of the program in all pods. May be repeated
#   --dry-run                  only prints the commands
# shellcheck disable=SC2154  # take_options sets the variables
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." >/dev/null && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
# shellcheck source=launch/options.sh
source "$root/launch/options.sh"
# shellcheck source=launch/tpu.sh
source "$root/launch/tpu.sh"

main() {
  no_more_options "$@"
  local command=${1:-}
  [ $# -eq 0 ] || shift
  take_options name= image= topology= slices= spot restarts= namespace= service-account= cluster= project= zone= dry-run \
    platform=+ label=+ node-selector=+ env=+ -- "$@"
  shift "$taken"
  no_more_options "$@"
  : "${slices:=1}" "${restarts:=20}" "${namespace:=default}" "${service_account:=default}"
  need_number slices "$slices"
  need_number restarts "$restarts"
  need_pairs env ${env[@]+"${env[@]}"}
  need_pairs label ${label[@]+"${label[@]}"}
  need_pairs node-selector ${node_selector[@]+"${node_selector[@]}"}
  case $command in
    render | apply | xpk)
      need name image topology
      describe_slice "$topology"
      need_bucket "$@"
      ;;
    image) need image ;;
    status | logs | delete) need name ;;
    *) mistake "unknown command '$command'; choose from image, render, apply, xpk, status, logs, delete (see $0 --help)" ;;
  esac
  "$command" "$@"
}

image() {
  show_or_run docker build --file="$root/launch/gke/Dockerfile" --tag="$image" ${platform[@]+"${platform[@]}"} "$root"
  show_or_run docker push "$image"
}

render() {
  local python more=() pair
  python=$(find_python)
  for pair in ${label[@]+"${label[@]}"}; do more+=(--label "$pair"); done
  for pair in ${node_selector[@]+"${node_selector[@]}"}; do more+=(--node-selector "$pair"); done
  for pair in ${env[@]+"${env[@]}"}; do more+=(--env "$pair"); done
  "$python" "$root/launch/gke/render.py" ${spot:+--spot} ${more[@]+"${more[@]}"} \
    name="$name" namespace="$namespace" image="$image" service_account="$service_account" \
    accelerator="$gke_accelerator" shape="$shape" hosts="$hosts" slices="$slices" \
    chips_per_host="$chips_per_host" restarts="$restarts" -- "$@"
}

apply() {
  local manifest
  manifest=$(render "$@")
  if [ -n "$dry_run" ]; then
    printf '%s\n' "$(quoted kubectl apply --filename=- ${platform[@]+"${platform[@]}"}) <<'MANIFEST'" "$manifest" MANIFEST
  else
    kubectl apply --filename=- ${platform[@]+"${platform[@]}"} <<<"$manifest"
  fi
}

xpk() {
  need cluster
  [ "${#label[@]}${#node_selector[@]}" = 00 ] || mistake "xpk takes no --label and no --node-selector; see --platform"
  local more=() pair
  for pair in ${env[@]+"${env[@]}"}; do more+=(--env="$pair"); done
  # XPK itself restarts after exit code 42 and signals.
  quoted xpk workload create --cluster="$cluster" ${project:+"--project=$project"} ${zone:+"--zone=$zone"} \
    --workload="$name" --tpu-type="$accelerator_type" --num-slices="$slices" --docker-image="$image" ${spot:+--spot} \
    --max-restarts="$restarts" ${more[@]+"${more[@]}"} ${platform[@]+"${platform[@]}"} --command="$(quoted simclr "$@")"
}

status() {
  show_or_run kubectl get jobset "$name" --namespace="$namespace" ${platform[@]+"${platform[@]}"}
  show_or_run kubectl get pods --namespace="$namespace" --selector="jobset.sigs.k8s.io/jobset-name=$name" --output=wide \
    ${platform[@]+"${platform[@]}"}
}

logs() {
  # Process 0 of the job runs on the first host of the first slice.
  local labels=jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
  show_or_run kubectl logs --namespace="$namespace" --selector="$labels" --tail=100 --follow ${platform[@]+"${platform[@]}"}
}

delete() {
  show_or_run kubectl delete jobset "$name" --namespace="$namespace" ${platform[@]+"${platform[@]}"}
}

main "$@"
