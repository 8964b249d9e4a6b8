#!/usr/bin/env bash
# Make a slice, or with --queued ask for one when there is room:
#   TPU_NAME=... TPU_ZONE=... tpu/create.sh v5litepod-16 [--queued] [more gcloud options, e.g. --spot]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
type=${1:?give an accelerator type, for example v5litepod-16}
shift
case $type in
  v2-* | v3-* | v4-*) image=tpu-ubuntu2204-base ;;
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  *) image=${TPU_IMAGE:?no image is known for this accelerator type: set TPU_IMAGE} ;;
esac
image=${TPU_IMAGE:-$image} queued='' options=()
for option in "$@"; do
  if [ "$option" = --queued ]; then queued=yes; else options+=("$option"); fi
done
if [ -n "$queued" ]; then
  queue create --node-id="$TPU_NAME" --accelerator-type="$type" --runtime-version="$image" ${options[@]+"${options[@]}"}
else
  tpu create --accelerator-type="$type" --version="$image" ${options[@]+"${options[@]}"}
fi
