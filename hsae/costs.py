"""What training autoencoders costs: FLOPs, bytes and seconds, as docs/scaling.md derives them.

Symbols: d coordinates of an activation; m latents of level 1, of which k are active on a token; n and k2 likewise of
level 2; B tokens of a batch. A multiply-add is two FLOPs. Seconds are those of an H200, at its published peaks times
the shares that are assumed to be reached; nothing was measured on one.
"""

from dataclasses import dataclass

# One H200 (SXM), published: dense bfloat16, HBM3e, NVLink in each direction (900 GB/s both ways).
PEAK, BANDWIDTH, MEMORY, LINK = 989e12, 4.8e12, 141e9, 450e9  # FLOP/s, bytes/s, bytes, bytes/s
REACHED_PEAK, REACHED_BANDWIDTH = 0.5, 0.8

HALF, FULL, ENTRY = 2, 4, 6  # bytes: bfloat16; float32; an active latent, as its value and its number
ADAM = 4 * FULL + HALF  # bytes kept per parameter: weight, two moments and gradient; a copy to compute with
ADAM_TRAFFIC = 4 * FULL + (3 * FULL + HALF) + FULL  # bytes per parameter and step: read; written; the gradient before


def parameters(d: int, m: int) -> int:
    """Of one level: two matrices and two biases."""
    return 2 * d * m + d + m


def dense_flops(d: int, m: int) -> int:
    """Per token of a training step of ReLU + L1: five products of a row with a d x m matrix."""
    return 10 * d * m


def encoder_flops(d: int, m: int) -> int:
    """Per token of the one product that stays dense where few latents are active."""
    return 2 * d * m


def entry_flops(d: int, k: int) -> int:
    """Per token on its active latents: decoding, their gradients, and the gradients of both matrices.

    In bfloat16 it is as many bytes: each multiply-add reads one coordinate of a row.
    """
    return 8 * d * k


def upper_entry_flops(d: int, k: int, n: int, k2: int, learns1: bool = True) -> int:
    """Per token of level 2 on the entries of h1 and h2; less where level 1 is frozen."""
    return (20 if learns1 else 16) * k * n + 4 * k2 * n + 6 * k2 * d


def upper_entry_bytes(d: int, k: int, n: int, k2: int) -> int:
    """Per token of level 2 in phase 3: the rows that its entries read."""
    return HALF * (8 * k * n + 2 * k2 * n + 3 * k2 * d)


def upper_products(d: int, m: int, n: int) -> int:
    """FLOPs per step, not per token, of level 2: its matrices times each other and times level 1's decoder."""
    return 8 * m * n * d + 4 * n * n * m


def level1_bytes(d: int, m: int) -> int:
    """Kept for training level 1."""
    return ADAM * parameters(d, m)


def level2_bytes(m: int, n: int) -> int:
    """Kept for training level 2: its parameters, and four m x n matrices of memberships and gradients."""
    return ADAM * parameters(m, n) + 4 * FULL * m * n


def forward_flops(d: int, layers: int) -> int:
    """Per token of a transformer up to its middle: half of its layers, of 12 d^2 parameters each."""
    return 2 * 12 * d * d * layers // 2


def dense_seconds(d: int, m: int, batch: int) -> dict[str, float]:
    """A step of ReLU + L1 on one GPU, part by part; six passes over B x m latents belong to the products."""
    products = max(_computed(dense_flops(d, m) * batch), _moved(6 * HALF * m * batch))
    return {"products": products, "optimizer": _moved(ADAM_TRAFFIC * parameters(d, m))}


def topk_seconds(d: int, m: int, k: int, batch: int) -> dict[str, float]:
    """A step of TopK on one GPU, part by part, one after the other."""
    return {
        "products": max(_computed(encoder_flops(d, m) * batch), _moved(HALF * m * batch)),
        "selection": _moved(HALF * m * batch),
        "entries": _moved(entry_flops(d, k) * batch),
        "optimizer": _moved(ADAM_TRAFFIC * parameters(d, m)),
    }


def level2_seconds(d: int, m: int, k: int, n: int, k2: int, batch: int) -> dict[str, float]:
    """What level 2 adds to a step of level 1 in phase 3, on one GPU."""
    return {
        "products": _computed(upper_products(d, m, n)),
        "entries": _moved(upper_entry_bytes(d, k, n, k2) * batch),
        "optimizer": _moved(ADAM_TRAFFIC * parameters(m, n)),
    }


def extraction_seconds(d: int, layers: int, tokens: float) -> float:
    """Activations of so many tokens, on one GPU."""
    return _computed(forward_flops(d, layers) * tokens)


def all_reduce_seconds(n_bytes: float, gpus: int) -> float:
    """To add up bytes that every GPU has: each sends, and receives, 2 (gpus - 1) / gpus of them (a ring)."""
    return 2 * (gpus - 1) / gpus * n_bytes / LINK


def replicated_seconds(d: int, m: int, k: int, batch: int, gpus: int) -> tuple[float, float]:
    """A TopK step where each GPU has all latents and a share of the batch: computing; adding up the gradients."""
    computing = sum(topk_seconds(d, m, k, batch // gpus).values())
    return computing, all_reduce_seconds(FULL * parameters(d, m), gpus)


def sharded_seconds(d: int, m: int, k: int, batch: int, gpus: int) -> tuple[float, float]:
    """A TopK step where each GPU has a share of the latents and sees the whole batch: computing; exchanging.

    Exchanged are the activations, the candidates (each GPU's largest k of a token: the k largest of all are among them)
    and the parts of the reconstruction, which are added up.
    """
    gathered = (gpus - 1) / gpus * HALF * batch * d + (gpus - 1) * ENTRY * batch * k
    exchange = gathered / LINK + all_reduce_seconds(HALF * batch * d, gpus)
    return sum(topk_seconds(d, m, k, batch).values()) / gpus, exchange


@dataclass(frozen=True)
class Step:
    """FLOPs of a step, or of many: of its dense products, and on its entries."""

    products: float
    entries: float

    @property
    def flops(self) -> float:
        """All of them."""
        return self.products + self.entries

    def seconds(self, rate: float, entry_rate: float) -> float:
        """At so many FLOPs per second of either sort."""
        return self.products / rate + self.entries / entry_rate


def relu_step(d: int, m: int, batch: int) -> Step:
    """Of ReLU + L1."""
    return Step(batch * dense_flops(d, m), 0)


def sparse_step(d: int, m: int, k: int, batch: int) -> Step:
    """Of a kind whose latents are few from the start."""
    return Step(batch * encoder_flops(d, m), batch * entry_flops(d, k))


def phase2_step(d: int, m: int, k: int, n: int, k2: int, batch: int) -> Step:
    """Of an HSAE whose level 1 is frozen: it is encoded, and no more."""
    products = batch * encoder_flops(d, m) + upper_products(d, m, n)
    return Step(products, batch * upper_entry_flops(d, k, n, k2, learns1=False))


def phase3_step(d: int, m: int, k: int, n: int, k2: int, batch: int) -> Step:
    """Of both levels."""
    lower = sparse_step(d, m, k, batch)
    return Step(lower.products + upper_products(d, m, n), lower.entries + batch * upper_entry_flops(d, k, n, k2))


def _computed(flops: float) -> float:
    """Seconds of so many FLOPs in large products."""
    return flops / (REACHED_PEAK * PEAK)


def _moved(n_bytes: float) -> float:
    """Seconds to move so many bytes to or from memory."""
    return n_bytes / (REACHED_BANDWIDTH * BANDWIDTH)
