"""Interventions on the residual stream: what of it, in the terms of any dictionary, causes what comes next.

The stream x at one layer is a sum of nodes. For an HSAE these are level-2 latents and two errors,

    x = h2 W2 W1 + e1 W1 + e0 + biases,   e1 = h1 - (h1 from h2),   e0 = x - (x from h1),

or level-1 latents and e0; other dictionaries have their own latents and error. Decoders are linear, so that to give any
mix of nodes the values that they have after another prompt is to add those nodes' part of the difference between the
two streams. Latents are patched at all positions at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.activations import Normalizer
from hsae.causal_lm import CausalLM
from hsae.causal_tasks import Task
from hsae.hierarchical import HierarchicalSAE

BATCH = 512  # prompts at a time
Encode = Callable[[Float[Tensor, "*batch d_in"]], Float[Tensor, "*batch node"]]


@dataclass(frozen=True)
class Basis:
    """A way to take the stream apart: codes of normalised activations, and the direction that each node adds."""

    encode: Encode
    directions: Float[Tensor, "node d_in"]

    def __len__(self) -> int:
        return len(self.directions)


@dataclass(frozen=True)
class Tracer:
    """A transformer whose residual stream after block `layer` is taken apart and put together again.

    At `masked` positions (`Store.masked_positions`) it is left as it is: what differs there is no part of a difference.
    """

    model: CausalLM
    layer: int
    normalizer: Normalizer
    masked: list[int] = field(default_factory=list)

    def stream(
        self, tokens: Int[Tensor, "prompt pos"], layer: int | None = None
    ) -> Float[Tensor, "prompt pos d_model"]:
        """Residual stream after a block, `layer` if none is named (-1: the embeddings)."""
        at, device = self.layer if layer is None else layer, next(self.model.parameters()).device
        return torch.cat([self.model.residual(part.to(device), at) for part in tokens.split(BATCH)])

    def last_logits(
        self, stream: Float[Tensor, "prompt pos d_model"], layer: int | None = None
    ) -> Float[Tensor, "prompt vocab"]:
        """Logits after the last token, given the stream after block `layer`."""
        return self.model.last_logits(stream, self.layer if layer is None else layer)

    @torch.no_grad()
    def answer(self, tokens: Int[Tensor, "prompt pos"]) -> Float[Tensor, "prompt vocab"]:
        """Logits after the last character of each prompt."""
        return torch.cat([self.last_logits(self.stream(part)) for part in tokens.split(BATCH)])


@dataclass(frozen=True)
class Runs:
    """The two runs of every pair of a task, at the layer that is taken apart."""

    tracer: Tracer
    task: Task
    clean: Float[Tensor, "pair pos d_model"]
    corrupt: Float[Tensor, "pair pos d_model"]
    m_clean: Float[Tensor, " pair"]
    """Log odds of the task's classes after the prompt."""
    m_corrupt: Float[Tensor, " pair"]

    @classmethod
    @torch.no_grad()
    def of(cls, tracer: Tracer, task: Task) -> "Runs":
        """Run the model on both prompts of every pair."""
        clean, corrupt = tracer.stream(task.clean), tracer.stream(task.corrupt)
        metrics = [task.metric(tracer.last_logits(stream)) for stream in (clean, corrupt)]
        return cls(tracer, task, clean, corrupt, *metrics)

    def __len__(self) -> int:
        return len(self.clean)

    @torch.no_grad()
    def codes(self, basis: Basis) -> Float[Tensor, "pair pos node"]:
        """How much more of each node there is after the prompt than after its counterfactual."""
        clean, corrupt = (_by_rows(self.tracer.normalizer, stream) for stream in (self.clean, self.corrupt))
        return self._unmasked(basis.encode(clean) - basis.encode(corrupt))

    @torch.no_grad()
    def metric(self, stream: Float[Tensor, "*more pair pos d_model"]) -> Float[Tensor, "*more pair"]:
        """Log odds of the task's classes, given another stream for each pair."""
        flat = stream.flatten(0, -3)
        odds = torch.cat([self.task.metric(self.tracer.last_logits(part)) for part in flat.split(BATCH)])
        return odds.view(stream.shape[:-2])

    def restore(self, part: Float[Tensor, "*more pair pos d_in"]) -> Float[Tensor, "*more pair"]:
        """Log odds when a part of the difference is put into the corrupt run: what it suffices for.

        `part` is in the units of normalised activations.
        """
        return self.metric(self.corrupt + self.tracer.normalizer.scale * part)

    def knock_out(self, part: Float[Tensor, "*more pair pos d_in"]) -> Float[Tensor, "*more pair"]:
        """Log odds when a part of the difference is taken out of the clean run: what it is needed for.

        With all that there is of a node, its code in the clean run times its direction, this is zero ablation.
        """
        return self.metric(self.clean - self.tracer.normalizer.scale * part)

    @torch.no_grad()
    def difference(self) -> Float[Tensor, "pair pos d_in"]:
        """All of the difference between the streams, normalised."""
        return self._unmasked((self.clean - self.corrupt) / self.tracer.normalizer.scale)

    def _unmasked(self, difference: Float[Tensor, "pair pos some"]) -> Float[Tensor, "pair pos some"]:
        """The same, in place, but for 0 at masked positions."""
        difference[:, [position for position in self.tracer.masked if position < difference.shape[1]]] = 0
        return difference

    def gradient(self, shares: list[float]) -> Float[Tensor, "pair pos d_in"]:
        """Gradient of the log odds by the normalised stream, averaged over points on the way from corrupt to clean.

        At the corrupt run itself, [0.0], it is that of attribution patching (Nanda 2023; Syed et al. 2023, arXiv
        2310.10348), which predicts what one node alone restores; at the `middles` of equal pieces, that of integrated
        gradients (Sundararajan et al. 2017, arXiv 1703.01365), by which Marks et al. (2024, arXiv 2403.19647) rank
        features of which many are restored.
        """
        total = torch.zeros_like(self.clean)
        for share in shares:
            for rows in torch.arange(len(self)).split(BATCH):
                point = torch.lerp(self.corrupt[rows], self.clean[rows], share).requires_grad_()
                odds = self.task.metric(self.tracer.last_logits(point)).sum()
                total[rows] += torch.autograd.grad(odds, point)[0]
        return total * (self.tracer.normalizer.scale / len(shares))


def middles(steps: int) -> list[float]:
    """The middles of so many equal pieces of 0..1."""
    return [(step + 0.5) / steps for step in range(steps)]


def part(
    codes: Float[Tensor, "pair pos node"], basis: Basis, nodes: Int[Tensor, " chosen"]
) -> Float[Tensor, "pair pos d_in"]:
    """The part of the difference that some nodes make up."""
    return codes[..., nodes] @ basis.directions[nodes]


def attribution(
    codes: Float[Tensor, "pair pos node"], basis: Basis, gradient: Float[Tensor, "pair pos d_in"]
) -> Float[Tensor, "pair node"]:
    """First-order effect of each node: its difference times the gradient along its direction, summed over positions."""
    return torch.stack([(c * (g @ basis.directions.T)).sum(0) for c, g in zip(codes, gradient, strict=True)])


def exact(
    runs: Runs, codes: Float[Tensor, "pair pos node"], basis: Basis, nodes: Int[Tensor, " chosen"]
) -> Float[Tensor, "chosen pair"]:
    """Effect of restoring each of some nodes alone, patched - corrupt log odds; many go through the model at once."""
    effects = []
    for some in nodes.split(max(BATCH // len(runs), 1)):
        parts = codes[..., some].permute(2, 0, 1)[..., None] * basis.directions[some][:, None, None]
        effects.append(runs.restore(parts) - runs.m_corrupt)
    return torch.cat(effects)


def dictionary_basis(encode: Callable[[Tensor], Tensor], directions: Float[Tensor, "node d_in"]) -> Basis:
    """The latents of a dictionary, whose encoder takes a matrix."""
    return Basis(lambda x: _by_rows(encode, x), directions.detach())


def hsae_bases(model: HierarchicalSAE) -> dict[str, Basis]:
    """Both levels of an HSAE; a level-2 latent's direction is that of the level-1 latents that it stands for."""
    return {
        "level1": dictionary_basis(model.level1.encode, model.level1.W_dec),
        "level2": dictionary_basis(model.encode_h2, model.directions_h2),
    }


def groups(runs: Runs, bases: dict[str, Basis]) -> dict[str, Float[Tensor, "pair pos d_in"]]:
    """The difference as the sum of its parts in h2, e1 and e0; and h1, which is h2 and e1."""
    h1, h2 = (runs.codes(bases[level]) @ bases[level].directions for level in ("level1", "level2"))
    return {"h2": h2, "e1": h1 - h2, "e0": runs.difference() - h1, "h1": h1}


def paths(
    runs: Runs,
    model: HierarchicalSAE,
    codes: Float[Tensor, "pair pos node"],
    parent: int,
    children: Int[Tensor, " child"],
) -> Float[Tensor, "child pair"]:
    """Effect of a level-2 latent by way of each of some level-1 latents alone: h2_j -> h1_i -> logits.

    `codes` are those of level 2. Only the share of h2_j in h1_i is restored, W2[j, i] times its difference.
    """
    weights, directions = model.level2.W_dec.detach()[parent, children], model.level1.W_dec.detach()[children]
    basis = Basis(lambda x: x, weights[:, None] * directions)
    alone = codes[..., [parent]].expand(*codes.shape[:-1], len(children))
    return exact(runs, alone, basis, torch.arange(len(children)))


@torch.no_grad()
def restoration_map(runs: Runs, distance: int) -> Float[Tensor, "layer distance pair"]:
    """Effect of the clean stream at one layer and one position, put into the corrupt run (Meng et al. 2022, ROME).

    Layers are the embeddings and what every block leaves; positions are counted back from the last: 0 .. distance - 1.
    """
    tracer, task = runs.tracer, runs.task
    effects = []
    for layer in range(-1, tracer.model.n_layer):
        clean, corrupt = tracer.stream(task.clean, layer), tracer.stream(task.corrupt, layer)
        for back in range(1, distance + 1):
            patched = corrupt.clone()
            patched[:, -back] = clean[:, -back]
            odds = [task.metric(tracer.last_logits(rows, layer)) for rows in patched.split(BATCH)]
            effects.append(torch.cat(odds) - runs.m_corrupt)
    return torch.stack(effects).view(tracer.model.n_layer + 1, distance, len(runs))


def _by_rows(encode: Callable[[Tensor], Tensor], x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch node"]:
    parts = [encode(rows) for rows in x.reshape(-1, x.shape[-1]).split(8192)]
    joined = torch.cat(parts) if len(parts) > 1 else parts[0]  # one would be copied
    return joined.view(*x.shape[:-1], -1)
