# Read by the other scripts: which slice they mean, and the one way in which they call gcloud.
set -euo pipefail
: "${TPU_NAME:?set TPU_NAME, the name of the slice, for example tcircuits}"
: "${TPU_ZONE:?set TPU_ZONE, for example europe-west4-b}"

# tpu VERB ARGUMENTS...: `gcloud compute tpus tpu-vm VERB NAME ARGUMENTS...` in the zone and, if TPU_PROJECT is set, the project.
tpu() {
  local verb=$1
  shift
  gcloud compute tpus tpu-vm "$verb" "$TPU_NAME" --zone="$TPU_ZONE" ${TPU_PROJECT:+--project="$TPU_PROJECT"} "$@"
}
