#!/usr/bin/env bash
# Bring a command to its end on slices that may be taken away. Makes the slice where there is none, installs, runs the
# command on every host, and where the slice was taken or a host failed, does it again:
#   TPU_NAME=... TPU_ZONE=... tpu/keep.sh v5litepod-16 --queued --spot -- tcircuits train FOLDER --data DATA
# The command must go on by itself from what it left (as `tcircuits train` and `extract` do), in a FOLDER that outlives the
# slice. A slice that was taken is made anew as often as it takes, unless none comes for TPU_PATIENCE seconds (a day); on a
# slice that is still there a command may fail TPU_RETRIES times (3) in a row, then its exit code is this one's. The slice is
# left for you: tpu/delete.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
here=$(dirname "${BASH_SOURCE[0]}") how=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  how+=("$1")
  shift
done
[ "${#how[@]}" -gt 0 ] && [ $# -gt 1 ] || { echo "give what tpu/create.sh takes, then --, then the command" >&2; exit 2; }
shift

# A slice with the checkout and its environment on it.
provide() {
  case $(slice_state) in
    READY) ;;
    PREEMPTED | TERMINATED | STOPPED | FAILED) "$here/delete.sh" || return ;;
  esac
  [ "$(slice_state)$(request_state)" != ABSENTABSENT ] || "$here/create.sh" "${how[@]}" || return
  "$here/wait.sh" || return
  on_hosts true 2>/dev/null || "$here/setup.sh"
}

failed=0 last=$SECONDS
while :; do
  if ! provide; then
    [ $((SECONDS - last)) -lt "${TPU_PATIENCE:-86400}" ] || { echo "no slice for ${TPU_PATIENCE:-86400} seconds" >&2; exit 1; }
    echo "no slice: trying again in ${TPU_POLL:-30} seconds" >&2
    sleep "${TPU_POLL:-30}"
    continue
  fi
  code=0
  "$here/run.sh" "$@" || code=$?
  last=$SECONDS
  [ "$code" -ne 0 ] || exit 0
  if [ "$(slice_state)" = READY ]; then
    failed=$((failed + 1))
    [ "$failed" -le "${TPU_RETRIES:-3}" ] || exit "$code"
    echo "the command ended with exit code $code on a slice that is there: again ($failed of ${TPU_RETRIES:-3})" >&2
    on_hosts 'kill -9 "$(cat front.pid)" 2>/dev/null || true' # what the failed host left waiting
  else
    failed=0
    echo "the slice was taken: again" >&2
  fi
done
