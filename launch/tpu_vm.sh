#!/usr/bin/env bash
# A training on a TPU VM slice, from nothing to its last step: create, install, start, show the log, and after a
# preemption create the slice anew and go on.
#
#   launch/tpu_vm.sh NAME ZONE TYPE -- --config configs/resnet50.py --workdir gs://bucket/r50
#   launch/tpu_vm.sh r50 us-west4-a v5litepod-256 -- --config configs/resnet50.py --workdir gs://bucket/r50
#
# SPOT=1 asks for a spot slice, VERSION names the VM's image, KEEP=1 keeps the slice when the training is done.
# Needs gcloud with a project set. The workdir must be on a bucket: a slice's disks go with it.
set -euo pipefail

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

[ $# -ge 5 ] && [ "$4" = "--" ] || usage
name=$1 zone=$2 type=$3
shift 4
case " $* " in
  *" --workdir gs://"* | *" --workdir=gs://"*) ;;
  *)
    echo "tpu_vm.sh: give --workdir gs://BUCKET/DIR: the disks of a slice go with it" >&2
    exit 2
    ;;
esac
here=$(cd "$(dirname "$0")/.." && pwd)
pause=${PAUSE:-30}
words=$(printf ' %q' "$@")

tpu() {
  local verb=$1
  shift
  gcloud compute tpus tpu-vm "$verb" "$name" --zone="$zone" "$@"
}

state() {
  tpu describe --format='value(state)' 2>/dev/null || echo ABSENT
}

everywhere() {
  tpu ssh --worker=all --command="$1"
}

create() {
  local more=()
  [ "${SPOT:-0}" = 1 ] && more+=(--spot)
  until tpu create --accelerator-type="$type" --version="${VERSION:-tpu-ubuntu2204-base}" "${more[@]}"; do
    echo "tpu_vm.sh: no $type in $zone yet, again in $pause s" >&2
    sleep "$pause"
  done
}

install() {
  local package
  package=$(mktemp -d)/jaxvision.tar.gz
  git -C "$here" archive --format=tar.gz --output="$package" HEAD
  tpu scp "$package" jaxvision.tar.gz --worker=all
  everywhere 'rm -rf jaxvision && mkdir jaxvision && tar xzf jaxvision.tar.gz -C jaxvision &&
    python3 -m venv new && new/bin/pip install --quiet -e "jaxvision[tpu,gcs]" && rm -rf venv && mv new venv'
}

while :; do
  now=$(state)
  case $now in
    READY) everywhere 'test -x venv/bin/python' || install ;;
    ABSENT)
      create
      continue
      ;;
    CREATING | STARTING | RESTARTING)
      sleep "$pause"
      continue
      ;;
    *) # PREEMPTED, TERMINATED, STOPPED: what is left of it must go before it can be made again
      echo "tpu_vm.sh: the slice is $now, creating it anew" >&2
      tpu delete --quiet
      continue
      ;;
  esac
  code=0
  everywhere "cd jaxvision && ../venv/bin/python -m jaxvision.train$words" || code=$?
  case $code in
    0) break ;;
    2 | 3)
      echo "tpu_vm.sh: the training ended with exit code $code; the slice is kept" >&2
      exit "$code"
      ;;
    *)
      echo "tpu_vm.sh: stopped with exit code $code, going on in $pause s" >&2
      sleep "$pause"
      ;;
  esac
done
[ "${KEEP:-0}" = 1 ] || tpu delete --quiet
