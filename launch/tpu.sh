# shellcheck shell=bash disable=SC2034
# Sourced by the launchers for TPUs. Finds the names of a slice on Cloud TPU and on GKE.

# describe_slice v5e:4x8: sets $shape, $chips, $hosts, $chips_per_host, $accelerator_type (name on Cloud TPU and in XPK),
# $slice_flags (for gcloud) and $gke_accelerator. It sets $runtime_version if that is empty.
describe_slice() {
  local generation=${1%%:*} dimensions largest image
  shape=${1#*:}
  case $generation in
    v4) dimensions=3 largest=4096 gke_accelerator=tpu-v4-podslice image=tpu-ubuntu2204-base ;;
    v5e) dimensions=2 largest=256 gke_accelerator=tpu-v5-lite-podslice image=v2-alpha-tpuv5-lite ;;
    v5p) dimensions=3 largest=6144 gke_accelerator=tpu-v5p-slice image=v2-alpha-tpuv5 ;;
    v6e) dimensions=2 largest=256 gke_accelerator=tpu-v6e-slice image=v2-alpha-tpuv6e ;;
    *) dimensions=0 largest=0 ;;
  esac
  count_chips "$dimensions" ||
    mistake "--topology=$1 must be a TPU and its shape in chips: v5e:4x8, v6e:16x16, v4:2x4x4, v5p:4x4x4"
  is_offered "$dimensions" "$largest" || mistake "--topology=$1: no such slice is offered; choose from $offer"

  chips_per_host=4
  if [ "$dimensions" -eq 2 ] && [ "$chips" -le 8 ]; then
    chips_per_host=$chips
  fi
  hosts=$((chips / chips_per_host))
  case $generation in
    # The names of these two count cores, two per chip. They do not contain the shape, so gcloud gets it separately.
    v4 | v5p) accelerator_type=$generation-$((2 * chips)) slice_flags=(--type="$generation" --topology="$shape") ;;
    v5e) accelerator_type=v5litepod-$chips slice_flags=(--accelerator-type="$accelerator_type") ;;
    v6e) accelerator_type=v6e-$chips slice_flags=(--accelerator-type="$accelerator_type") ;;
  esac
  : "${runtime_version:=$image}"
}

# count_chips DIMENSIONS: sets $chips from $shape. Fails if $shape does not have this number of dimensions.
count_chips() {
  local sides side
  IFS=x read -r -a sides <<<"$shape"
  [ "${#sides[@]}" -eq "$1" ] || return
  chips=1
  for side in "${sides[@]}"; do
    case $side in
      '' | 0* | ?????* | *[!0-9]*) return 1 ;;
    esac
    chips=$((chips * side))
  done
}

# is_offered DIMENSIONS LARGEST: whether there is a slice with $shape. Sets $offer to a description of all slices. The same
# rule is in simclr_jax/planning/topology.py. A launcher must not wait for an installation to refuse a mistake.
is_offered() {
  local planes='1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16' parts='2x2x1 2x2x2 2x2x4 2x4x4'
  if [ "$1" -eq 2 ]; then
    offer=${planes// /, }
    [[ " $planes " == *" $shape "* ]]
    return
  fi
  offer="${parts// /, }, and multiples of 4 in ascending order up to $2 chips, such as 4x4x8"
  [[ " $parts " == *" $shape "* ]] && return
  local a b c
  IFS=x read -r a b c <<<"$shape"
  [ $((a % 4 + b % 4 + c % 4)) -eq 0 ] && [ "$a" -le "$b" ] && [ "$b" -le "$c" ] && [ "$chips" -le "$2" ]
}

# need_bucket ARGUMENTS...: checks that --workdir is in a bucket. The hosts of a slice share no disk, and a preemption
# deletes their disks.
need_bucket() {
  local argument previous=
  for argument in "$@"; do
    case $previous$argument in
      --workdir=gs://* | --workdirgs://*) return ;;
    esac
    previous=
    [ "$argument" != --workdir ] || previous=--workdir
  done
  mistake "the program needs --workdir=gs://BUCKET/DIRECTORY: a local disk is lost with its host, and other hosts cannot read it"
}
