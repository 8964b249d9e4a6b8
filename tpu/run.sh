#!/usr/bin/env bash
# Run one command on every host at the same time, in the checkout and its environment; the processes find each other:
#   TPU_NAME=... TPU_ZONE=... tpu/run.sh python tpu/preflight.py
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -gt 0 ] || { echo "give the command to run on every host" >&2; exit 2; }
tpu ssh --worker=all \
  --command="cd tcircuits && . .venv/bin/activate && export TCIRCUITS_DISTRIBUTED=1 && $(printf '%q ' "$@")"
