"""How the gradient of a level's objective is computed: by autograd, or by hand on nothing but what is active.

What it is the gradient of, the models and losses.py say; autograd's is the oracle, and the way on CUDA, in float64 and
where kernels.cpp cannot be compiled. By hand, x is encoded in chunks that stay in the processor's cache, the active
latents of each token are listed as entries, and all that follows is done on these: decoding, the gradients of
activations, and, the entries being sorted by latent, the gradients of weights. A ReLU autoencoder alone takes dense
products in the same chunks while many of its latents are active, as they are at first.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsae import kernels, parallel
from hsae.kernels import call
from hsae.products import gram, product
from hsae.sae import SAE
from hsae.training import Autograd, Gradients, Terms
from hsae.variants import BatchTopKSAE, GatedSAE, JumpReLUSAE, MatryoshkaSAE, ThresholdSAE, TopKSAE

BY_HAND = (SAE, TopKSAE, BatchTopKSAE, ThresholdSAE, JumpReLUSAE, MatryoshkaSAE, GatedSAE)  # not what derives from them
CHUNK = 512
SPARSE = 0.1  # of latents active: at fewer, entries are faster than dense products
GUESS = 0.7  # of the last batch's cutoff: what lies below is hardly ever among the batch's largest


def level_objective(model: SAE, x: Float[Tensor, "batch d_in"], weight: float) -> Terms:
    """The terms of an autoencoder alone: its reconstruction error times `weight`, and its sparsity."""
    out = model(x)
    return {"x_from_h1": weight * model.error(x, out), "sparsity_h1": model.sparsity(out, x.shape[1])}


def level_gradients(model: SAE, weight: float = 1.0) -> Gradients:
    """Gradients of `level_objective`, by hand where that can be done."""
    if not by_hand(model) or not weight:
        return Autograd(model, lambda x: level_objective(model, x, weight))
    return (ReLUGradients if model.kind == "relu" else SparseGradients)(model, weight)


def by_hand(model: nn.Module) -> bool:
    """Whether a model's gradients can be computed by hand: of `BY_HAND`, in float32, on the CPU, with the kernels."""
    levels = [module for module in model.modules() if isinstance(module, SAE)]
    tensors = list(model.parameters())
    known = all(type(level) in BY_HAND for level in levels)
    return (
        known
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and kernels.library() is not None
    )


class Buffers:
    """Memory that is used again at every step, by name."""

    def __init__(self):
        self._tensors: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor with any content; the same one at every step unless the shape changes."""
        if name not in self._tensors or self._tensors[name].shape != shape:
            self._tensors[name] = torch.empty(shape, dtype=dtype)
        return self._tensors[name]


def own_gradients(model: nn.Module) -> None:
    """Give each parameter that learns a gradient, to be written in place."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None


class Level:
    """The entries of a level on a batch: its active latents, and those so near their thresholds that they count there.

    A token's entries are `count` long from `start` in `latents` and `values`, in ascending order; `grad` holds the
    gradients of their activations. Those of latent l are `entries` from where[l] to where[l + 1], of tokens `row`. An
    entry is active if it is above `least` of its latent; each latent has `counts` active ones, whose sum is `sums`.
    Where processes share the batch, `counts` are of all of it, and all else is of this process's share.
    """

    def __init__(self, model: SAE, d_x: int):
        self.model, self.d_x, self.buffers = model, d_x, Buffers()
        self.cutoff = torch.zeros((), dtype=torch.float64)
        self.memory = {"cutoff": self.cutoff}

    def encode(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Make and sort the entries of a batch of inputs."""
        model = self.model
        offset = model.b_enc - model.b_dec @ model.W_enc

        def select() -> None:
            for first in range(0, len(x), CHUNK):
                self._select(product(x[first : first + CHUNK], model.W_enc, offset), first)

        self._make(len(x), select)

    def read(self, pre_acts: Float[Tensor, "batch d_sae"]) -> None:
        """Make and sort the entries of a batch, given the latents before their activation function."""
        self._make(len(pre_acts), lambda: self._select(pre_acts, 0))

    def decode(
        self, x: Float[Tensor, "batch d_out"], W_dec: Tensor, b_dec: Tensor, weight: float
    ) -> tuple[float, Float[Tensor, "prefix batch d_out"]]:
        """Reconstruct x by some decoder: `weight` times the error, the gradients of x_hat; entries' gradients are set.

        Of nested prefixes, the gradients of one include those of longer ones, to which its latents belong as well.
        """
        (batch, d), n = x.shape, len(self.ends)
        gradients = self.buffers("x_hat", n, batch, d)
        squares = call(
            "decode", x, batch, d, W_dec, b_dec, n, self.ends, 2 * weight / (n * batch * d), self.l1_price / batch,
            self.least, *self.rows, self.grad, gradients,
        )  # fmt: skip
        return weight * squares / (n * batch * d), gradients

    def sparsity(self) -> float:
        """The sparsity term of the loss."""
        n_active = int(self.counts.sum()) / parallel.size()
        prices = self.l0_price * n_active + self.l1_price * float(self.sums.double().sum())
        return prices / len(self.count)

    @property
    def l0_price(self) -> float:
        """What the sparsity term costs per active latent of a token."""
        return 2 / self.d_x * float(self.model.beta) if isinstance(self.model, JumpReLUSAE) else 0.0

    @property
    def l1_price(self) -> float:
        """What it costs per unit of activation."""
        return float(self.model.beta) if self.model.kind == "relu" else 0.0

    def weighted_rows(
        self,
        name: str,
        weights: Tensor,
        matrix: Float[Tensor, "prefix batch d"],
        bias: Tensor | None = None,
        shift: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Float[Tensor, "d_sae d"]:
        """For each latent the sum over its active entries of weight times row of `matrix`, minus bias times `shift`."""
        n, batch, d = matrix.shape
        out = self.buffers(name, self.model.d_sae, d) if out is None else out
        ends = self.ends if n > 1 else self.everything
        call(
            "weighted_rows", matrix, batch, d, self.model.d_sae, ends, *self.columns, self.row,
            self.values, self.least, weights, bias, shift, out,
        )  # fmt: skip
        return out

    def threshold_gradients(self) -> Float[Tensor, " d_sae"]:
        """Set the thresholds' gradients, if they learn; per latent the sum of its active entries' gradients."""
        model, d_sae = self.model, self.model.d_sae
        active, near = self.buffers("active", d_sae), self.buffers("near", d_sae)
        n_near = self.buffers("n_near", d_sae, dtype=torch.int32)
        half = model.BANDWIDTH / 2 if isinstance(model, JumpReLUSAE) else 0.0
        call("thresholds", d_sae, *self.columns, self.values, self.grad, self.least, half, active, near, n_near)
        if isinstance(model, JumpReLUSAE) and model.log_threshold.grad is not None:
            near.mul_(self.least).add_(n_near, alpha=self.l0_price / len(self.count))
            torch.mul(near, -1 / model.BANDWIDTH, out=model.log_threshold.grad)
        return active

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """The entries by token."""
        return self.start, self.count, self.latents, self.values

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The entries by latent."""
        return self.where, self.entries

    def _make(self, batch: int, select: Callable[[], None]) -> None:
        model, d_sae = self.model, self.model.d_sae
        integers = {"start": batch, "where": d_sae + 1, "entries": batch * d_sae}
        self.start, self.where, self.entries = (self.buffers(k, n, dtype=torch.int64) for k, n in integers.items())
        integers = {"count": batch, "latents": batch * d_sae, "row": batch * d_sae, "counts": d_sae}
        self.count, self.latents, self.row, self.counts = (
            self.buffers(k, n, dtype=torch.int32) for k, n in integers.items()
        )
        self.values, self.grad = self.buffers("values", batch * d_sae), self.buffers("grad", batch * d_sae)
        self.sums = self.buffers("sums", d_sae)
        self.everything = torch.tensor([d_sae])
        ends = [max(d_sae // share, 1) for share in model.PREFIXES] if isinstance(model, MatryoshkaSAE) else [d_sae]
        self.ends = torch.tensor(ends)
        self.least = torch.zeros(d_sae)
        if isinstance(model, ThresholdSAE):
            self.least = model.threshold().detach().expand(d_sae).contiguous()
        self.bound = self.least
        if isinstance(model, JumpReLUSAE) and model.log_threshold.requires_grad:
            self.bound = self.least * (1 - model.BANDWIDTH / 2)
        if isinstance(model, BatchTopKSAE):
            self.bound = torch.full(
                (d_sae,), GUESS * float(self.cutoff) if model.training else max(float(model.threshold), 0.0)
            )
        select()
        if isinstance(model, BatchTopKSAE) and model.training:
            self._keep_largest(model.k * batch * parallel.size(), select)
            model.update_threshold(self.cutoff.float())
        call("by_latent", batch, d_sae, self.start, self.count, self.latents, *self.columns, self.row)
        self.squares = call("activity", d_sae, *self.columns, self.values, self.least, self.counts, self.sums)
        parallel.total(self.counts)
        if model.training:
            model.count(batch * parallel.size(), self.counts)

    def _keep_largest(self, n: int, select: Callable[[], None]) -> None:
        """Keep the batch's `n` largest entries; `select` makes them anew where the bound was too high."""
        if int(parallel.total(self.count.sum())) < n and self.cutoff:
            self.bound = torch.zeros(self.model.d_sae)
            select()
        batch = len(self.count)
        if parallel.size() == 1:
            cutoff = call("nth_largest", batch, n, self.start, self.count, self.values)
        else:
            # Of the entries, which lie in pieces, those of all processes, as if they were of one row.
            before = self.start - self.count.cumsum(0) + self.count
            own = torch.arange(int(self.count.sum())) + before.repeat_interleave(self.count)
            values = parallel.gathered(self.values[own], n + 1)
            cutoff = call("nth_largest", 1, n, torch.tensor([0]), torch.tensor([len(values)]).int(), values)
        call("keep_from", batch, cutoff, *self.rows)
        self.cutoff.fill_(cutoff)

    def _select(self, z: Float[Tensor, "rows d_sae"], first: int) -> None:
        model, (rows, d_sae) = self.model, z.shape
        if isinstance(model, GatedSAE):
            call("select_gated", z, first, rows, d_sae, *model.families(), *self.rows)
        elif isinstance(model, TopKSAE) and not isinstance(model, BatchTopKSAE):
            call("select_top_k", z, first, rows, d_sae, model.k, *self.rows)
        else:
            call("select_above", z, first, rows, d_sae, self.bound, *self.rows)


def set_gradients(level: Level, x: Float[Tensor, "batch d_in"], x_hat_gradients: Tensor) -> None:
    """Set a level's gradients from those of its entries and of its reconstructions of `x`."""
    model = level.model
    bias = level.threshold_gradients()
    level.weighted_rows("W_dec", level.values, x_hat_gradients, out=model.W_dec.grad)
    W_enc = level.weighted_rows("W_enc", level.grad, x[None], bias, model.b_dec)
    set_gradient(model.W_enc, W_enc.T)
    set_gradient(model.b_enc, bias)
    set_gradient(model.b_dec, x_hat_gradients[0].sum(0).addmv_(model.W_enc, bias, alpha=-1))


def set_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Write a parameter's gradient, unless it is frozen."""
    if parameter.requires_grad:
        assert parameter.grad is not None
        parameter.grad.copy_(gradient)


class SparseGradients:
    """Gradients of `level_objective` on entries."""

    def __init__(self, model: SAE, weight: float):
        self.model, self.weight, self.level = model, weight, Level(model, model.d_in)
        self.memory = self.level.memory
        own_gradients(model)

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "batch d_in"]) -> Terms:
        """The terms; the gradients are set."""
        self.level.encode(x)
        error, x_hat_gradients = self.level.decode(x, self.model.W_dec, self.model.b_dec, self.weight)
        set_gradients(self.level, x, x_hat_gradients)
        return terms(x_from_h1=error, sparsity_h1=self.level.sparsity())

    @property
    def active(self) -> float:
        """The fraction of latents that were active on the last batch's tokens."""
        return int(self.level.counts.sum()) / (parallel.size() * len(self.level.count) * self.model.d_sae)


def terms(**values: float) -> Terms:
    """Terms of a loss, as tensors."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


class ReLUGradients:
    """Gradients of `level_objective` for ReLU autoencoders: dense products until few latents are active."""

    def __init__(self, model: SAE, weight: float):
        self.dense, self.sparse = DenseGradients(model, weight), SparseGradients(model, weight)
        self.active = torch.ones((), dtype=torch.float64)
        self.memory = {"active": self.active}

    def __call__(self, x: Float[Tensor, "batch d_in"]) -> Terms:
        """The terms; the gradients are set."""
        way = self.sparse if self.active < SPARSE else self.dense
        found = way(x)
        self.active.fill_(way.active)
        return found


class DenseGradients:
    """Gradients of `level_objective` for ReLU autoencoders, by dense products."""

    def __init__(self, model: SAE, weight: float):
        self.model, self.weight, self.buffers = model, weight, Buffers()
        self.active = 1.0  # the fraction of latents that were active on the last batch's tokens
        own_gradients(model)

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "batch d_in"]) -> Terms:
        """The terms; the gradients are set."""
        model, (batch, d), d_sae = self.model, x.shape, self.model.d_sae
        W_enc, W_dec = self.buffers("W_enc", d, d_sae).zero_(), self.buffers("W_dec", d, d_sae).zero_()
        b_enc, b_dec = self.buffers("b_enc", d_sae).zero_(), self.buffers("b_dec", d).zero_()
        sums, counts = self.buffers("sums", d_sae).zero_(), self.buffers("counts", d_sae, dtype=torch.int32).zero_()
        offset = model.b_enc - model.b_dec @ model.W_enc
        beta, squares = float(model.beta), 0.0
        for first in range(0, batch, CHUNK):
            rows = x[first : first + CHUNK]
            acts = product(rows, model.W_enc, offset).clamp_(min=0)
            error = product(acts, model.W_dec, model.b_dec).sub_(rows)
            squares += float(torch.linalg.vector_norm(error, dtype=torch.float64)) ** 2
            error.mul_(2 * self.weight / (batch * d))
            gradients = product(error, model.W_dec.T)
            call("relu_backward", acts, gradients, len(rows), d_sae, beta / batch, b_enc, sums, counts)
            W_dec.add_(gram(error, acts))
            W_enc.add_(gram(rows, gradients))
            b_dec.add_(error.sum(0))
        set_gradient(model.W_enc, W_enc.addmm_(model.b_dec[:, None], b_enc[None], alpha=-1))
        set_gradient(model.W_dec, W_dec.T)
        set_gradient(model.b_enc, b_enc)
        set_gradient(model.b_dec, b_dec.addmv_(model.W_enc, b_enc, alpha=-1))
        everywhere = batch * parallel.size()
        model.count(everywhere, parallel.total(counts))
        self.active = int(counts.sum()) / (everywhere * d_sae)
        return terms(
            x_from_h1=self.weight * squares / (batch * d), sparsity_h1=beta * float(sums.double().sum()) / batch
        )
