# shellcheck shell=bash
# Read by the other scripts: which slice they mean, and the ways in which they call gcloud.
set -euo pipefail
: "${TPU_NAME:?set TPU_NAME, the name of the slice, for example tcircuits}"
: "${TPU_ZONE:?set TPU_ZONE, for example europe-west4-b}"

# tpu VERB ARGUMENTS...: `gcloud compute tpus tpu-vm VERB NAME ARGUMENTS...` in the zone and, if TPU_PROJECT is set, the project.
tpu() {
  local verb=$1
  shift
  gcloud compute tpus tpu-vm "$verb" "$TPU_NAME" --zone="$TPU_ZONE" ${TPU_PROJECT:+--project="$TPU_PROJECT"} "$@"
}

# queue VERB ARGUMENTS...: the same of a queued request for the slice, which has the slice's name.
queue() {
  local verb=$1
  shift
  gcloud compute tpus queued-resources "$verb" "$TPU_NAME" --zone="$TPU_ZONE" ${TPU_PROJECT:+--project="$TPU_PROJECT"} "$@"
}

# The slice's state (READY, CREATING, PREEMPTED ...) or ABSENT; the request's (ACTIVE, WAITING_FOR_RESOURCES ...) or ABSENT.
slice_state() { tpu describe --format='value(state)' 2>/dev/null || echo ABSENT; }
request_state() { queue describe --format='value(state.state)' 2>/dev/null || echo ABSENT; }

# on_hosts COMMAND: a shell command in the checkout and its environment, on every host at the same time.
on_hosts() {
  tpu ssh --worker="${TPU_WORKER:-all}" --command="cd tcircuits && . .venv/bin/activate && export TCIRCUITS_DISTRIBUTED=1 && $1"
}
