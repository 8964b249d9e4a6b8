#!/usr/bin/env bash
# The slice's state, and how far every host's command is: TPU_NAME=... TPU_ZONE=... tpu/status.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
state=$(slice_state)
echo "slice $state"
[ "$state" = READY ] || exit 0
on_hosts 'if [ -f run.code ]; then echo "$(hostname): ended with exit code $(cat run.code)"
elif [ -f run.pid ] && kill -0 "$(cat run.pid)" 2>/dev/null; then echo "$(hostname): running"
else echo "$(hostname): nothing is running"; fi'
