#!/usr/bin/env bash
# Follow what one host's command says until it ends: TPU_NAME=... TPU_ZONE=... tpu/logs.sh [host, from 0]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
TPU_WORKER=${1:-0} on_hosts 'tail -n +1 --pid="$(cat run.pid)" -F run.log 2>/dev/null'
