#!/usr/bin/env bash
# NOT RUN HERE: there was no Slurm to run it on. The tests run examples/share.sh, which it calls.
#
#   HSAE_GIT=<address of your git repository> sbatch examples/slurm.sh
#
# Every task of the array runs one share of the sweep in a clone of its own; `sbatch --array=3` runs one of them again.
# Git and the DVC remote must be reachable from the nodes, with the right to write, and credentials in the environment.
#SBATCH --job-name=hsae-ablations
#SBATCH --array=1-4
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail
parts=4 # as many as --array says
clone=${HSAE_CLONES:-$HOME/hsae-clones}/$SLURM_ARRAY_TASK_ID # it is kept: a task that was stopped goes on there

[ -d "$clone" ] || git clone "${HSAE_GIT:?is not set: the address of your git repository}" "$clone"
cd "$clone"
make .venv/installed
PATH="$PWD/.venv/bin:$PATH" bash examples/share.sh ablations "$SLURM_ARRAY_TASK_ID/$parts"
