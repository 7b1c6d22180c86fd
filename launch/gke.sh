#!/usr/bin/env bash
# A training on a TPU slice of GKE, as the JobSet of launch/jobset.yaml: apply it, follow the log of its first pod over
# all restarts, and tell how it ended.
#
#   launch/gke.sh NAME TOPOLOGY IMAGE -- --config configs/resnet50.py --workdir gs://bucket/r50
#   launch/gke.sh r50 16x16 REGISTRY/jaxvision:1 -- --config configs/resnet50.py --workdir gs://bucket/r50
#
# Ctrl-C ends the following, not the training; the same call goes on following it. Exit codes: 0 done, 2 bad config or
# not started, 3 diverged, 1 ended by anything else.
# DRY=1 prints the manifest and does nothing else, SPOT=1 asks for spot machines, SERVICE_ACCOUNT names the one of the
# pods (default), ACCELERATOR the kind of TPU (tpu-v5-lite-podslice, which is v5e).
# Needs kubectl with a cluster chosen, and JobSet in it. The workdir must be on a bucket: a pod's disk goes with it.
set -euo pipefail

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

say() {
  echo "gke.sh: $1" >&2
}

refuse() {
  say "$1"
  exit 2
}

[ $# -ge 5 ] && [ "$4" = "--" ] || usage
name=$1 topology=$2 image=$3
shift 4
here=$(cd "$(dirname "$0")" && pwd)
pause=${PAUSE:-10}

# --------------------------------------------------------------------------- the manifest

swap() { # WHAT BY, everywhere in $text, as they are: in ${text//WHAT/BY} a & of BY would mean WHAT, in some shells
  local rest=$text
  text=
  while [[ $rest == *"$1"* ]]; do
    text+=${rest%%"$1"*}$2
    rest=${rest#*"$1"}
  done
  text+=$rest
}

quoted() { # TEXT as JSON has it, which YAML reads as well
  text=$1
  swap \\ \\\\
  swap '"' '\"'
  swap $'\n' '\n'
  swap $'\t' '\t'
  printf '"%s"' "$text"
}

chips=1 workdir='' arguments='' before=''
for word in "$@"; do
  [ "$before" != --workdir ] || workdir=$word
  [ "$word" = "${word#--workdir=}" ] || workdir=${word#--workdir=}
  before=$word text=$word
  swap '$' '$$' # Kubernetes puts variables where an argument has $(NAME); $$ is a $
  arguments+=${arguments:+, }$(quoted "$text")
done
[[ $workdir == gs://?* ]] || refuse "give --workdir gs://BUCKET/DIR: the disk of a pod goes with it"
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  refuse "NAME is '$name': it must be a-z, 0-9 and -, at most 40, from a letter to a letter or digit"
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || refuse "TOPOLOGY is '$topology': write it as 4x4, 16x16 or 2x2x4"
for side in ${topology//x/ }; do chips=$((chips * side)); done
[ $((chips % 4)) = 0 ] || refuse "TOPOLOGY is '$topology', $chips chips: a machine has 4; choose 2x2, 4x4, 8x8 or 16x16"

text=$(<"$here/jobset.yaml")
[ "${SPOT:-0}" != 1 ] || swap '# cloud.google.com/gke-spot' 'cloud.google.com/gke-spot'
swap '<NAME>' "$(quoted "$name")"
swap '<MACHINES>' "$((chips / 4))"
swap '<SERVICE_ACCOUNT>' "$(quoted "${SERVICE_ACCOUNT:-default}")"
swap '<ACCELERATOR>' "$(quoted "${ACCELERATOR:-tpu-v5-lite-podslice}")"
swap '<TOPOLOGY>' "$(quoted "$topology")"
swap '<IMAGE>' "$(quoted "$image")"
swap '<CACHE>' "$(quoted "${workdir%/}/compiled")"
swap '<ARGUMENTS>' "[$arguments]" # last: what they hold is not looked at again
manifest=$text
if [ "${DRY:-0}" = 1 ]; then
  printf '%s\n' "$manifest"
  exit 0
fi

# --------------------------------------------------------------------------- the cluster

command -v kubectl >/dev/null ||
  refuse "there is no kubectl on the PATH: gcloud components install kubectl, then choose a cluster with
gcloud container clusters get-credentials CLUSTER"

state() { # NAME/, NAME/Completed or NAME/Failed; nothing where there is none of that name
  kubectl get jobset "$name" --ignore-not-found -o 'jsonpath={.metadata.name}/{.status.terminalState}'
}

first_pod() { # its name and phase; with a restart under way, of the newer one
  kubectl get pods --sort-by=.metadata.creationTimestamp \
    -l "jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" \
    -o 'jsonpath={range .items[*]}{.metadata.name} {.status.phase}{"\n"}{end}' | tail -n 1
}

failed() { # FIELD of the condition Failed of KIND NAME
  kubectl get "$2" "$3" --ignore-not-found -o "jsonpath={.status.conditions[?(@.type==\"Failed\")].$1}"
}

tell_failure() {
  local reason why code=1 what="stopped too often, or by something else than the training"
  reason=$(failed reason jobset "$name") || true
  why=$(failed message job "$name-train-0") || true
  case $why in
    *"exit code 2 "*) code=2 what="something in the config, the data or the arguments is wrong" ;;
    *"exit code 3 "*) code=3 what="the training diverged" ;;
  esac
  say "$name failed: $what
reason: ${reason:-unknown}; ${why:-kubectl describe jobset $name may say more}
to start it again, from its last checkpoint: kubectl delete jobset $name, then the same call"
  exit "$code"
}

now=$(state) || refuse "kubectl could not ask for $name (its error is above): choose a cluster with
gcloud container clusters get-credentials CLUSTER, and install JobSet in it (https://jobset.sigs.k8s.io)"
case $now in
  */?*) say "$name has ended already" ;;
  *)
    [ -z "$now" ] || say "$name is there already, going on with its log"
    # Does nothing where the same is there. Of a JobSet that is there neither image nor arguments can be changed.
    kubectl apply --server-side -f - <<<"$manifest" ||
      refuse "$name was not applied (kubectl's error is above). If it is there with another image or other arguments,
choose another NAME, or end it first: kubectl delete jobset $name"
    ;;
esac

trap 'say "$name goes on; the same call follows it, kubectl delete jobset $name ends it"; exit 130' INT
shown='' since='' waiting=''
while :; do
  if ! now=$(state) || ! pod=$(first_pod); then
    say "the cluster does not answer, again in $pause s"
    sleep "$pause"
    continue
  fi
  phase=${pod#* } pod=${pod% *}
  case $phase in
    '' | Pending)
      [ -n "$waiting" ] || say "$name waits for its machines; kubectl describe jobset $name, or its pods, tell for what"
      waiting=1
      ;;
    *)
      if [ "$pod" != "$shown" ]; then
        [ -z "$shown" ] || say "$name was restarted, now as $pod"
        since=1970-01-01T00:00:00Z # all of it
      fi
      kubectl logs --follow "$pod" --container=train --since-time="$since" || true
      # also where the connection broke: then it goes on from here
      shown=$pod since=$(date -u +%Y-%m-%dT%H:%M:%SZ) waiting=''
      ;;
  esac
  case $now in # as it was before the log, of which the end may have come since
    */Completed)
      say "$name is done"
      exit 0
      ;;
    */Failed) tell_failure ;;
    '')
      say "$name was deleted; what it saved is in $workdir, and the same call goes on from there"
      exit 1
      ;;
  esac
  sleep "$pause"
done
