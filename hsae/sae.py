"""The sparse autoencoder of one level, with ReLU and an L1 penalty; hsae/variants.py has the other kinds."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hsae import losses, parallel
from hsae.products import linear


class SAEOutput(NamedTuple):
    """What one forward pass gives."""

    acts: Float[Tensor, "batch d_sae"]
    """Latent activations, nonnegative."""
    x_hat: Float[Tensor, "batch d_in"]
    """Reconstruction of the input."""
    pre_acts: Float[Tensor, "batch d_sae"]
    """Latents before the activation function."""


class SAE(nn.Module):
    """ReLU sparse autoencoder: acts = relu((x - b_dec) W_enc + b_enc), x_hat = acts W_dec + b_dec.

    Decoder rows have unit norm, so that activations cannot shrink, and the L1 penalty with them, at no cost to the
    reconstruction (Bricken et al. 2023, Towards Monosemanticity). With `nonnegative` the decoder has no negative
    entries either: a level-2 latent is a sum of level-1 latents.

    In training mode the buffer `idle_tokens` counts the tokens since each latent was last active, for `revive`, and
    `l0` is the mean number of active latents per token of the last batch.
    """

    kind = "relu"
    INITIAL_DENSITY = 0.06
    REVIVED_DENSITY = 0.01
    beta: Tensor
    idle_tokens: Tensor

    def __init__(self, d_in: int, d_sae: int, *, nonnegative: bool = False):
        super().__init__()
        self.d_in, self.d_sae, self.nonnegative = d_in, d_sae, nonnegative
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.W_dec = nn.Parameter(torch.randn(d_sae, d_in))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_enc = nn.Parameter(torch.empty(d_in, d_sae))
        self.register_buffer("beta", torch.tensor(0.0))
        self.register_buffer("idle_tokens", torch.zeros(d_sae, dtype=torch.long))
        self.l0 = torch.tensor(math.nan)
        self.tie()

    def pre_acts(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Latents before the activation function."""
        return linear(x, self.W_enc.T, self.b_enc - self.b_dec @ self.W_enc)

    def activate(self, pre_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """The activation function: what distinguishes the kinds."""
        return pre_acts.relu()

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Latent activations."""
        return self.activate(self.pre_acts(x))

    def decode(self, acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_in"]:
        """Reconstruction from latent activations."""
        return linear(acts, self.W_dec.T, self.b_dec)

    def forward(self, x: Float[Tensor, "batch d_in"]) -> SAEOutput:
        """Encode and decode; in training mode, count the tokens without activity."""
        pre_acts = self.pre_acts(x)
        acts = self.activate(pre_acts)
        if self.training:
            self.count(parallel.size() * len(x), parallel.total((acts.detach() > 0).sum(0)))
        return SAEOutput(acts, self.decode(acts), pre_acts)

    @torch.no_grad()
    def count(self, n_tokens: int, n_active: Int[Tensor, " d_sae"]) -> None:
        """Note on how many of a training batch's tokens each latent was active."""
        self.idle_tokens.add_(n_tokens).masked_fill_(n_active > 0, 0)
        self.l0 = n_active.sum() / n_tokens

    def reconstruct(self, x: Float[Tensor, "batch d_in"]) -> tuple[Tensor, Tensor]:
        """Activations and reconstruction: the SAE as a dictionary to be evaluated."""
        return self(x)[:2]

    def error(self, x: Float[Tensor, "batch d_in"], out: SAEOutput) -> Float[Tensor, ""]:
        """Reconstruction term of the loss."""
        return losses.mse(out.x_hat, x)

    def sparsity(self, out: SAEOutput, d_x: int) -> Float[Tensor, ""]:  # noqa: ARG002 (the kinds' common signature)
        """Sparsity term of the loss: beta times the L1 norm."""
        return self.beta * losses.l1(out.acts)

    def header(self) -> dict[str, Any]:
        """What `load` needs to build the same module again."""
        return {"kind": self.kind, "d_in": self.d_in, "d_sae": self.d_sae, "nonnegative": self.nonnegative}

    @torch.no_grad()
    def tie(self) -> None:
        """Make the decoder valid and start the encoder as its transpose."""
        self.constrain()
        self.W_enc.copy_(self.W_dec.T)

    @torch.no_grad()
    def init_from_data(self, x: Float[Tensor, "n d_in"]) -> None:
        """Decoder bias = mean of `x`; decoder rows = its first `d_sae` rows, centred. Random rows failed at level 2.

        The encoder is the decoder's transpose, with biases by which each latent is active on the `INITIAL_DENSITY` of
        the rows that lie farthest in its direction, times the one factor that makes the reconstruction of `x` best:
        latents overlap, and without it their sum overshoots so far that the first steps kill half of them. Raises
        ValueError if `x` has fewer than `d_sae` rows.
        """
        if len(x) < self.d_sae:
            raise ValueError(f"initialising {self.d_sae} latents from data needs as many tokens; there are {len(x)}.")
        self.b_dec.copy_(x.mean(0))
        self.W_dec.copy_(x[: self.d_sae] - self.b_dec)
        self.tie()
        centred = x - self.b_dec
        projections = centred @ self.W_enc
        cutoff = first_below(projections, self.INITIAL_DENSITY)
        least = torch.as_tensor(self.least())
        baseline = (projections > cutoff) * least @ self.W_dec
        overshoot = (projections - cutoff).relu() @ self.W_dec
        gain = (overshoot * (centred - baseline)).sum() / overshoot.square().sum().clamp(min=1e-8)
        gain = gain.clamp(min=0.01)
        self.W_enc.mul_(gain)
        self.b_enc.copy_(least - gain * cutoff)

    @torch.no_grad()
    def constrain(self) -> None:
        """Project the decoder back onto unit rows (and nonnegative entries): call after every optimizer step.

        A frozen decoder stays as it is: normalising a row whose norm is 1 already may still change its last bit.
        """
        if not self.W_dec.requires_grad:
            return
        if self.nonnegative:
            self.W_dec.clamp_(min=0)
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-8))

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Drop the decoder gradient's part along the rows, which `constrain` would undo (Bricken et al. 2023)."""
        gradient = self.W_dec.grad
        if gradient is not None:
            gradient.sub_((gradient * self.W_dec).sum(1, keepdim=True) * self.W_dec)

    @torch.no_grad()
    def revive(self, x: Float[Tensor, "batch d_in"], dead_tokens: int, generator: torch.Generator) -> int:
        """Point latents that were silent for `dead_tokens` tokens at what is reconstructed worst; returns how many.

        Resampling (Bricken et al. 2023): a dead latent takes the direction of the error of a token, drawn with
        probability proportional to its squared error. Its encoder is the linear discriminant that tells this token from
        the batch, and its bias lets it answer the `REVIVED_DENSITY` of the batch that look most like it, the token
        itself by about the size of its error. One that answered more would add more error than it removes, and the next
        ones would be revived larger still. Adam's state is left as it is: after the 25 batches of 2,048 that make the
        default 50,000 tokens, .9^25 = 7% is left of a dead latent's first moment, and nearly all of its second.
        """
        dead = (self.idle_tokens >= dead_tokens).nonzero()[:, 0]
        if not len(dead):
            return 0
        was_training = self.training
        error = x - self.eval().reconstruct(x)[1]
        self.train(was_training)
        missing = error.clamp(min=0) if self.nonnegative else error
        weights = missing.square().sum(1).cpu()
        dead = dead[: weights.count_nonzero()]  # a token without error has no direction to give
        if not len(dead):
            return 0
        rows = torch.multinomial(weights, len(dead), generator=generator).to(x.device)
        directions = missing[rows] / missing[rows].norm(dim=1, keepdim=True)
        centred = x - x.mean(0)
        covariance = centred.T @ centred / len(x)
        covariance.diagonal().add_(0.1 * covariance.diagonal().mean() + 1e-6)
        detectors = torch.linalg.solve(covariance, centred[rows].T)
        responses = centred @ detectors
        own = responses[rows, torch.arange(len(rows), device=x.device)]
        cutoff = first_below(responses, self.REVIVED_DENSITY)
        # A token that hardly differs from the first one that is not answered would be given a gain without bounds.
        gain = (error[rows] * directions).sum(1) / (own - cutoff).clamp(min=0.1 * own).clamp(min=1e-6)
        self.W_dec[dead] = directions
        self.W_enc[:, dead] = detectors * gain
        self.b_enc[dead] = self.least() - gain * cutoff - (x.mean(0) - self.b_dec) @ self.W_enc[:, dead]
        self.idle_tokens[dead] = 0
        return len(dead)

    def anneal(self, left: float) -> None:
        """Set how much of the annealing is left, from 1 to 0: kinds without a threshold have none."""

    def settled(self) -> bool:
        """Whether sparsity follows from beta by now; not so while a threshold is still coming down."""
        return True

    def nearness(self, out: SAEOutput) -> Float[Tensor, "batch d_sae"]:
        """How near each latent is to being active, from 0 to 1; without a threshold, 1 where it is and else 0."""
        return (out.acts > 0).to(out.acts.dtype)

    def least(self) -> Tensor | float:
        """The smallest activation that a latent can have."""
        return 0.0


def first_below(responses: Float[Tensor, "batch latent"], density: float) -> Float[Tensor, " latent"]:
    """Of each column the largest value that a share `density` of the rows (one at least) exceeds."""
    n_above = min(max(round(density * len(responses)), 1), len(responses) - 1)
    return responses.topk(n_above + 1, dim=0).values[-1]
