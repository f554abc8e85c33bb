#!/usr/bin/env bash
# One clone's part of a sweep: bash examples/share.sh SWEEP I/N [JOBS]
# In a clone whose git remote `origin` and DVC remote are those of all other clones, with its Python environment active.
# Stopped, it goes on where it was; what is finished is sent also when something failed.
set -euo pipefail
sweep=${1:?usage: share.sh SWEEP I/N [JOBS]} share=${2:?usage: share.sh SWEEP I/N [JOBS]} jobs=${3:-1}

dvc pull # the transformer, the activations, and all else that the commit has
status=0
python -m hsae.sweep "$sweep" --share "$share" --jobs "$jobs" || status=$?
dvc exp push origin # metrics to git, models to the DVC remote
exit "$status"
