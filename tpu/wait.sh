#!/usr/bin/env bash
# Wait until the slice can be used: TPU_NAME=... TPU_ZONE=... tpu/wait.sh
# Looks every TPU_POLL seconds (30) for at most TPU_PATIENCE seconds (a day). Exit code 1 where it will not come.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
end=$((SECONDS + ${TPU_PATIENCE:-86400})) told=''
while :; do
  slice=$(slice_state)
  [ "$slice" = READY ] && exit 0
  request=$(request_state)
  [ "$slice, $request" = "$told" ] || echo "slice $slice, request $request" >&2
  told="$slice, $request"
  case $request in
    FAILED | SUSPENDED) echo "the request ended: tpu/delete.sh, then ask again" >&2; exit 1 ;;
  esac
  case $slice in
    PREEMPTED | TERMINATED | STOPPED | FAILED) echo "the slice ended: tpu/delete.sh, then make it again" >&2; exit 1 ;;
    ABSENT) [ "$request" != ABSENT ] || { echo "there is neither a slice nor a request: tpu/create.sh" >&2; exit 1; } ;;
  esac
  [ "$SECONDS" -lt "$end" ] || { echo "still not there after ${TPU_PATIENCE:-86400} seconds" >&2; exit 1; }
  sleep "${TPU_POLL:-30}"
done
