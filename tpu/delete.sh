#!/usr/bin/env bash
# Delete the slice, which ends its cost: TPU_NAME=... TPU_ZONE=... tpu/delete.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
tpu delete --quiet
