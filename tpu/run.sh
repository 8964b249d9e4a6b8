#!/usr/bin/env bash
# Run one command on every host at the same time, in the checkout and its environment; the processes find each other:
#   TPU_NAME=... TPU_ZONE=... tpu/run.sh python tpu/preflight.py
# What it says comes here. A long command goes on without this terminal with tpu/start.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -gt 0 ] || { echo "give the command to run on every host" >&2; exit 2; }
on_hosts "echo \$\$ > front.pid && exec $(printf '%q ' "$@")"
