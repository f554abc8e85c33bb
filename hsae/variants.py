"""Kinds of sparse autoencoders, which differ in their activation function: TopK and its relatives, and thresholds."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hsae import losses, parallel
from hsae.config import check
from hsae.files import understanding
from hsae.products import linear
from hsae.sae import SAE, SAEOutput
from hsae.streams import Stream


class TopKSAE(SAE):
    """SAE that keeps each token's `k` largest activations and no other (Gao et al. 2024, arXiv 2406.04093)."""

    kind = "topk"

    def __init__(self, d_in: int, d_sae: int, *, k: int, nonnegative: bool = False):
        check("k", k, f"in 1..d_sae (={d_sae})", 1 <= k <= d_sae)
        super().__init__(d_in, d_sae, nonnegative=nonnegative)
        self.k = k

    def activate(self, pre_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """At most `k` nonzero per token."""
        top = pre_acts.relu().topk(self.k, sorted=False)
        return torch.zeros_like(pre_acts).scatter(1, top.indices, top.values)

    def sparsity(self, out: SAEOutput, d_x: int) -> Float[Tensor, ""]:  # noqa: ARG002 (the kinds' common signature)
        """Nothing: `k` sets the sparsity."""
        return out.acts.new_zeros(())

    def header(self) -> dict[str, Any]:
        """What `load` needs to build the same module again."""
        return {**super().header(), "k": self.k}


class BatchTopKSAE(TopKSAE):
    """SAE that keeps a batch's `k` times batch size largest activations (Bussmann et al. 2024, arXiv 2412.06410).

    In evaluation mode a token must not depend on its neighbours: latents above the buffer `threshold` are kept, the
    running mean of the smallest activation that training kept.
    """

    kind = "batchtopk"
    threshold: Tensor

    def __init__(self, d_in: int, d_sae: int, *, k: int, nonnegative: bool = False):
        super().__init__(d_in, d_sae, k=k, nonnegative=nonnegative)
        self.register_buffer("threshold", torch.tensor(-1.0))

    def activate(self, pre_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """At most `k` nonzero per token on average of a training batch; else those above the threshold."""
        acts = pre_acts.relu()
        if not self.training:
            return acts * (acts > self.threshold)
        n_kept = self.k * parallel.size() * len(acts)
        positive = parallel.gathered(acts.detach()[acts > 0], n_kept + 1)
        scarce = len(positive) <= n_kept
        # Not kthvalue, which on a GPU is not deterministic.
        cutoff = positive.new_zeros(()) if scarce else positive.topk(n_kept, sorted=False).values.min()
        self.update_threshold(cutoff)
        return acts * (acts >= cutoff)

    @torch.no_grad()
    def update_threshold(self, cutoff: Float[Tensor, ""]) -> None:
        """Move the threshold toward the smallest activation that a training batch kept."""
        self.threshold.copy_(torch.where(self.threshold < 0, cutoff, self.threshold.lerp(cutoff, 0.01)))


class ThresholdSAE(SAE):
    """SAE with hard threshold: acts = z where z > sqrt(2 beta), else 0; no other sparsity term is needed.

    The hard threshold is to an L0 penalty what the ReLU's shift is to L1: the proximal operator. It minimises
    (z - h)^2 / 2 + beta ||h||_0, so a lone latent is active where it is worth its cost (iterative hard thresholding,
    Blumensath & Davies 2008; as an activation function: Konda et al. 2015, arXiv 1402.3337). Nothing shrinks, and beta
    sets the sparsity.

    Phase 1 starts from `START` times the threshold and anneals it, geometrically: from below, dense codes form first
    and never become sparse ones.
    """

    kind = "threshold"
    START = 10.0
    scale: Tensor

    def __init__(self, d_in: int, d_sae: int, *, nonnegative: bool = False):
        super().__init__(d_in, d_sae, nonnegative=nonnegative)
        self.register_buffer("scale", torch.tensor(1.0))

    def activate(self, pre_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """Unchanged above the threshold, else 0."""
        return pre_acts * (pre_acts > self.threshold())

    def threshold(self) -> Float[Tensor, "*d_sae"]:
        """The present threshold: one for all latents, or one for each."""
        # Not quite 0, which is the ReLU's, for what is divided by it.
        return (2 * self.beta).sqrt().clamp(min=1e-6) * self.scale

    def anneal(self, left: float) -> None:
        """Multiply the threshold by START^left."""
        self.scale.fill_(self.START**left)

    def settled(self) -> bool:
        """Whether the threshold has come down."""
        return bool(self.scale == 1)

    def nearness(self, out: SAEOutput) -> Float[Tensor, "batch d_sae"]:
        """How near each latent is to being active: 1 above the threshold, else the share of it that is reached."""
        return (out.pre_acts / self.threshold()).clamp(0, 1)

    def least(self) -> Tensor:
        """The smallest activation that a latent can have."""
        return self.threshold()

    def sparsity(self, out: SAEOutput, d_x: int) -> Float[Tensor, ""]:  # noqa: ARG002 (the kinds' common signature)
        """Nothing: the threshold sets the sparsity."""
        return out.acts.new_zeros(())


class JumpReLUSAE(ThresholdSAE):
    """SAE with a learned threshold per latent and an L0 penalty (Rajamanoharan et al. 2024, arXiv 2407.14435).

    Thresholds start from sqrt(2 beta) and learn, as their logarithms, by straight-through estimators whose kernel is
    `BANDWIDTH` thresholds wide, so that neither has a unit. While annealing, all are scaled up, as in `ThresholdSAE`.
    """

    kind = "jumprelu"
    BANDWIDTH = 0.5

    def __init__(self, d_in: int, d_sae: int, *, nonnegative: bool = False):
        super().__init__(d_in, d_sae, nonnegative=nonnegative)
        self.log_threshold = nn.Parameter(torch.zeros(d_sae))

    def threshold(self) -> Float[Tensor, " d_sae"]:
        """The present thresholds; their gradient reaches `log_threshold`."""
        return super().threshold() * self.log_threshold.exp()

    def activate(self, pre_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """Unchanged above the threshold, else 0."""
        if not torch.is_grad_enabled():  # what only the gradient needs takes as long again
            return pre_acts * (pre_acts > self.threshold())
        return JumpReLU.apply(pre_acts, self.threshold(), self.BANDWIDTH)  # pyright: ignore[reportReturnType]

    def sparsity(self, out: SAEOutput, d_x: int) -> Float[Tensor, ""]:
        """2 / d_x * beta * L0: with mse, a mean over coordinates, it makes 2 / d_x * (||error||^2 / 2 + beta * L0)."""
        active: Tensor = Step.apply(out.pre_acts, self.threshold(), self.BANDWIDTH)  # pyright: ignore
        return 2 / d_x * self.beta * active.sum(1).mean()

    @torch.no_grad()
    def revive(self, x: Float[Tensor, "batch d_in"], dead_tokens: int, generator: torch.Generator) -> int:
        """As in the base class; a revived latent has the median threshold."""
        dead = self.idle_tokens >= dead_tokens
        n_revived = super().revive(x, dead_tokens, generator)
        self.log_threshold[dead & (self.idle_tokens == 0)] = self.log_threshold.median()
        return n_revived

    def least(self) -> Tensor:
        """The smallest activation that a typical latent can have."""
        return self.threshold().median()


class JumpReLU(torch.autograd.Function):
    """z where z > threshold, else 0; the threshold's gradient by a rectangular kernel around it."""

    @staticmethod
    def forward(
        ctx: Any, z: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
    ) -> Float[Tensor, "batch d_sae"]:
        """Apply the function."""
        active = z > threshold
        ctx.save_for_backward(active, near(z, threshold, bandwidth))
        ctx.bandwidth = bandwidth
        return z * active

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore
        """Exact for z; for the threshold, -threshold times the kernel's density, 1 / (bandwidth * threshold)."""
        active, near = ctx.saved_tensors
        return gradient * active, -(gradient * near).sum(0) / ctx.bandwidth, None


class Step(torch.autograd.Function):
    """1 where z > threshold, else 0; its gradient, estimated by the same kernel, moves the threshold alone."""

    @staticmethod
    def forward(
        ctx: Any, z: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
    ) -> Float[Tensor, "batch d_sae"]:
        """Apply the function."""
        ctx.save_for_backward(near(z, threshold, bandwidth), threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:  # pyright: ignore
        """Estimated for the threshold: minus the kernel's density."""
        near, threshold = ctx.saved_tensors
        return None, -(gradient * near).sum(0) / (ctx.bandwidth * threshold), None


def near(
    z: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
) -> Bool[Tensor, "batch d_sae"]:
    """Where z lies within the kernel: less than half a bandwidth, in units of the threshold, away from it."""
    return (z - threshold).abs() < bandwidth / 2 * threshold


class MatryoshkaSAE(BatchTopKSAE):
    """BatchTopK whose nested prefixes of latents must each reconstruct x (Bussmann et al. 2025, arXiv 2503.17547).

    The prefixes hold 1/16, 1/8, 1/4, 1/2 and all of the latents; the error is the mean over them. General features
    crowd into the first prefixes: a hierarchy without a second level.
    """

    kind = "matryoshka"
    PREFIXES = (16, 8, 4, 2, 1)

    def error(self, x: Float[Tensor, "batch d_in"], out: SAEOutput) -> Float[Tensor, ""]:
        """Mean over prefixes of their squared errors."""
        ends = [max(self.d_sae // share, 1) for share in self.PREFIXES]
        errors, x_hat, start = [], self.b_dec, 0
        for end in ends[:-1]:
            x_hat = x_hat + linear(out.acts[:, start:end], self.W_dec[start:end].T)
            errors.append(losses.mse(x_hat, x))
            start = end
        return torch.stack([*errors, losses.mse(out.x_hat, x)]).mean()


class GatedSAE(TopKSAE):
    """Parents with gated children: a child can be active only with its parent (H-SAE, Muchane et al. 2025).

    The first quarter of the latents are parents, the others children, three for each. A token keeps its k / 2 largest
    parents (rounded up) and the largest child of each of them (after arXiv 2506.01197, where each parent has a small
    autoencoder of its own for its children).
    """

    kind = "gated"
    CHILDREN = 3

    def activate(self, pre_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """At most `k` nonzero per token (k + 1 if it is odd)."""
        k_parents, n_families, _ = self.families()
        n_parents = self.d_sae - n_families * self.CHILDREN
        acts = pre_acts.relu()
        top = acts[:, :n_parents].topk(k_parents, sorted=False)
        parents = torch.zeros_like(acts[:, :n_parents]).scatter(1, top.indices, top.values)
        families = acts[:, n_parents:].unflatten(1, (n_families, self.CHILDREN))
        largest = families.max(2, keepdim=True)
        children = torch.zeros_like(families).scatter(2, largest.indices, largest.values)
        return torch.cat([parents, (children * (parents[:, :n_families, None] > 0)).flatten(1)], dim=1)

    def families(self) -> tuple[int, int, int]:
        """Numbers of parents that are active on a token, of parents that have children, and of children of each."""
        n_families = self.d_sae // (1 + self.CHILDREN)
        return min((self.k + 1) // 2, self.d_sae - n_families * self.CHILDREN), n_families, self.CHILDREN


KINDS = (SAE, TopKSAE, BatchTopKSAE, ThresholdSAE, JumpReLUSAE, MatryoshkaSAE, GatedSAE)
VARIANTS: dict[str, type[SAE]] = {variant.kind: variant for variant in KINDS}


def build(kind: str, d_in: int, d_sae: int, *, k: int, beta: float, nonnegative: bool = False) -> SAE:
    """An autoencoder of a kind, of which each is told its sparsity by `k` or by `beta`.

    Raises ValueError for an unknown kind, or a k that is not in 1..d_sae where the kind needs it.
    """
    check("kind", kind, f"one of {', '.join(VARIANTS)}", kind in VARIANTS)
    variant = VARIANTS[kind]
    model = variant(d_in, d_sae, nonnegative=nonnegative, **({"k": k} if issubclass(variant, TopKSAE) else {}))
    model.beta.fill_(beta)
    return model


def drawn(kind: str, d_in: int, d_sae: int, *, k: int, beta: float, stream: Stream, nonnegative: bool = False) -> SAE:
    """An autoencoder as `build` makes it, whose weights are those of `stream`.

    Kinds of one size that get one stream start from the same directions: they are compared pair by pair.
    """
    with stream.seeding():
        return build(kind, d_in, d_sae, k=k, beta=beta, nonnegative=nonnegative)


def load(tensors: dict[str, Tensor], header: dict[str, Any]) -> SAE:
    """The autoencoder that was saved as these tensors and this header, in evaluation mode.

    Raises ValueError if they are something else's.
    """
    with understanding("the autoencoder"), torch.random.fork_rng(devices=[]):  # what is drawn gives way to the tensors
        arguments = {name: value for name, value in header.items() if name != "kind"}
        model = VARIANTS[header["kind"]](**arguments)
        model.load_state_dict(tensors)
    return model.eval()
