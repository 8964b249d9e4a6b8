#!/usr/bin/env bash
# Delete the slice, and the request that it came from, which ends its cost: TPU_NAME=... TPU_ZONE=... tpu/delete.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [ "$(request_state)" = ABSENT ]; then
  tpu delete --quiet
else
  queue delete --quiet --force
fi
