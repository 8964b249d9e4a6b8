#!/usr/bin/env bash
# Start a command on every host and leave it there; its output goes to run.log, its exit code to run.code:
#   TPU_NAME=... TPU_ZONE=... tpu/start.sh tcircuits train runs/a --data prose
# Then tpu/logs.sh follows it, and tpu/status.sh says whether it ended. A command that is running is not started again.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -gt 0 ] || { echo "give the command to start on every host" >&2; exit 2; }
command=$(printf '%q ' "$@")
busy='[ -f run.pid ] && kill -0 "$(cat run.pid)" 2>/dev/null && echo "$(hostname): one is running already" >&2 && exit 3'
program="$command > run.log 2>&1; echo \$? > run.code"
on_hosts "{ $busy; rm -f run.code; nohup bash -c $(printf '%q' "$program") > /dev/null 2>&1 < /dev/null & echo \$! > run.pid; }"
