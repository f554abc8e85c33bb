#!/usr/bin/env bash
# torch 2.13.0, CPU: which random numbers a seed gives.
#
# Expected: a generator takes a seed of 64 bits, so different seeds are different streams; the first n numbers of a draw
# do not depend on how many are drawn after them.
#
# Seen: (1) the CPU generator reads the low 32 bits of the seed only, while initial_seed() gives all 64 back. Seeds that
# are hashes of 64 bits collide as 32 do. (2) torch.randn of fewer than 16 numbers, of 16 and of 17 share no prefix: from
# 16 on it fills blocks of 16, and draws the last, partial block anew over the end. Sizes that are multiples of 16 do
# share one. So a matrix of weights and a matrix of true features drawn from one seed are the same rows, or are not,
# by their sizes alone. (3) A draw in place into a transposed tensor is another one than into a contiguous tensor of
# the same shape.
#
# Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import torch


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape):
    return torch.randn(*shape, generator=seeded(0))


found = {
    "seeds 1 and 1 + 2^32 give the same numbers": torch.equal(
        torch.rand(8, generator=seeded(1)), torch.rand(8, generator=seeded(1 + 2**32))
    ),
    "initial_seed() of 1 + 2^32 is the whole number": seeded(1 + 2**32).initial_seed() == 1 + 2**32,
    "randn(15) is the beginning of randn(16)": torch.equal(normal(15), normal(16)[:15]),
    "randn(16) is the beginning of randn(17)": torch.equal(normal(16), normal(17)[:16]),
    "randn(160, 64) is the beginning of randn(256, 64)": torch.equal(normal(160, 64), normal(256, 64)[:160]),
    "a transposed tensor is filled with the same numbers": torch.equal(
        torch.empty(8, 6).t().normal_(generator=seeded(0)), torch.empty(6, 8).normal_(generator=seeded(0))
    ),
}
for what, is_so in found.items():
    print(f"torch {torch.__version__}: {what}: {is_so}")
assert list(found.values()) == [True, True, False, False, True, False], "torch behaves in another way than it did"
PYTHON
