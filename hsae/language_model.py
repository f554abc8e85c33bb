"""Training of the character transformer and its cross-entropy on held-out text."""

import copy
import math
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn import functional as F

from hsae.causal_lm import CausalLM
from hsae.checkpoint import NOWHERE, Checkpoints, named, restore, tensors_of
from hsae.config import check, check_positive
from hsae.data import context_starts, first_of_each, random_starts, windows
from hsae.gpt import GPT
from hsae.progress import Progress
from hsae.streams import Stream


@dataclass
class TransformerConfig:
    """Section `train_transformer`: the model's shape and its training. Tokens seen = steps * batch_size * context.

    `eval_windows` contexts of the validation split choose the weights that are kept, and as many others, of the same
    documents, give the loss that is published; if there are fewer, each gets half of them.
    """

    seed: int
    n_layer: int
    n_head: int
    d_model: int
    context: int
    dropout: float
    batch_size: int
    steps: int
    lr: float
    final_lr_fraction: float
    warmup_steps: int
    weight_decay: float
    adam_beta2: float
    grad_clip: float
    eval_interval: int
    eval_windows: int
    sample_chars: int

    def __post_init__(self) -> None:
        positive = (
            "n_layer n_head d_model context batch_size steps lr grad_clip eval_interval eval_windows sample_chars"
        )
        check_positive(self, positive.split())
        check("d_model", self.d_model, f"a multiple of n_head (={self.n_head})", self.d_model % self.n_head == 0)
        check("dropout", self.dropout, "in [0, 1)", 0 <= self.dropout < 1)
        check("final_lr_fraction", self.final_lr_fraction, "in [0, 1]", 0 <= self.final_lr_fraction <= 1)
        check("warmup_steps", self.warmup_steps, "in 0..steps", 0 <= self.warmup_steps <= self.steps)
        check("weight_decay", self.weight_decay, "0 or above", self.weight_decay >= 0)
        check("adam_beta2", self.adam_beta2, "in (0, 1)", 0 < self.adam_beta2 < 1)


@dataclass(frozen=True)
class TrainedTransformer:
    """The model at its best validation loss, and a row of the loss curve per evaluation (nats per character).

    `best` is the row that chose the weights: its loss is the lowest of many, and flattered.
    """

    model: CausalLM
    curve: list[dict[str, float]]
    best: dict[str, float]


@dataclass
class _Log:
    """The curve, its best row without `lr`, and the losses of the steps since its last row."""

    curve: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    running: list[float] = field(default_factory=list)


def train(
    model: GPT,
    tokens: Integer[Tensor, " corpus"],
    ranges: Integer[Tensor, "range 2"],
    choosing: Integer[Tensor, "window context_plus_1"],
    config: TransformerConfig,
    stream: Stream,
    checkpoints: Checkpoints = NOWHERE,
) -> TrainedTransformer:
    """Train with AdamW, linear warm-up and cosine decay; keep the weights with the lowest loss on `choosing`.

    Windows of `tokens` start anywhere in a range (data.py) and end in it. On a GPU products are in bfloat16 (automatic
    mixed precision); weights, optimizer and evaluation stay in float32. If there is a checkpoint, training goes on from
    there, to the same bits. Raises ValueError if the loss stops being finite.
    """
    device = next(model.parameters()).device
    generator = stream.of("order of batches").torch()
    optimizer = make_optimizer(model, config)
    checkpoints = checkpoints.of("train_transformer")
    log, best_state = _Log(), {}
    with stream.of("dropout").seeding(), ExitStack() as stack:
        if saved := checkpoints.load():  # the state of the global generator, from which dropout draws, among it
            restore(saved.tensors, model, optimizer, {"batches": generator})
            log, best_state = _Log(**saved.state), named(saved.tensors, "best")
        start = saved.step if saved else 0
        bar = stack.enter_context(Progress("train_transformer", config.steps, start))
        for step in range(start, config.steps):
            lr = learning_rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            starts = random_starts(ranges, config.context, config.batch_size, generator)
            batch = windows(tokens, starts, config.context).to(device).long()
            log.running.append(_step(model, optimizer, batch, config.grad_clip))
            last = step + 1 == config.steps
            if (step + 1) % config.eval_interval == 0 or last:
                row = _evaluate(model, choosing, step + 1, log.running)
                log.curve.append({**row, "lr": lr})
                log.running = []
                if not log.best or row["val_loss"] < log.best["val_loss"]:
                    log.best, best_state = row, copy.deepcopy(model.state_dict())
            bar.advance(1, f"val {log.curve[-1]['val_loss']:.3f}" if log.curve else "")
            if checkpoints.due() or last:
                best = {f"best.{name}": tensor for name, tensor in best_state.items()}
                checkpoints.save(step + 1, tensors_of(model, optimizer, {"batches": generator}) | best, vars(log))
    model.load_state_dict(best_state)
    return TrainedTransformer(model.eval(), log.curve, log.best)


def halves(
    ranges: Integer[Tensor, "range 2"], context: int, n: int
) -> tuple[Int[Tensor, " half"], Int[Tensor, " half"]]:
    """Where the contexts of the validation split begin that choose the weights, and those that score them: `n` of each.

    They are the first and the second half of what is taken of each document (a range), or of documents of one context
    every other one: neither is of one document alone. Raises ValueError if there are not two contexts.
    """
    n = min(n, len(context_starts(ranges, context)) // 2)
    if not n:
        raise ValueError("the validation split has one context; it needs two: raise `prepare_data.val_fraction`.")
    starts = context_starts(ranges, context, 2 * n)
    first = first_of_each(torch.searchsorted(ranges[:, 0].contiguous(), starts, right=True), n)
    return starts[first], starts[~first]


def learning_rate(step: int, config: TransformerConfig) -> float:
    """Linear warm-up to `lr`, then a cosine down to `final_lr_fraction * lr` at the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - 1 - config.warmup_steps, 1)
    floor = config.final_lr_fraction
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model: GPT, config: TransformerConfig) -> torch.optim.Optimizer:
    """AdamW that decays matrices and embeddings and leaves the LayerNorm gains alone."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    gains = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.adam_beta2), fused=True)


@torch.no_grad()
def cross_entropy(model: CausalLM, batch: Integer[Tensor, "window context_plus_1"], chunk: int = 64) -> float:
    """Mean next-character cross-entropy over all windows and positions, in nats."""
    device = next(model.parameters()).device
    total = 0.0
    for part in batch.split(chunk):
        tokens = part.to(device).long()
        total += next_token_loss(model(tokens[:, :-1]), tokens).double().sum().item()
    return total / (batch.shape[0] * (batch.shape[1] - 1))


def next_token_loss(
    logits: Float[Tensor, "window pos n_vocab"], tokens: Integer[Tensor, "window pos_plus_1"]
) -> Float[Tensor, "window pos"]:
    """Cross-entropy of every next character, in nats."""
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(logits.shape[:2])


def _step(
    model: GPT, optimizer: torch.optim.Optimizer, batch: Integer[Tensor, "batch context_plus_1"], grad_clip: float
) -> float:
    # A GPU multiplies bfloat16 several times faster; a CPU does not.
    with torch.autocast("cuda", torch.bfloat16, enabled=batch.is_cuda):
        loss = next_token_loss(model(batch[:, :-1]), batch).mean()
    if not loss.isfinite():
        raise ValueError(f"train_transformer: the loss is {loss.item()}; lower `train_transformer.lr`.")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _evaluate(model: GPT, batch: Tensor, step: int, running: list[float]) -> dict[str, float]:
    model.eval()
    row = {"step": step, "train_loss": sum(running) / len(running), "val_loss": cross_entropy(model, batch)}
    if not math.isfinite(row["val_loss"]):
        raise ValueError(f"train_transformer: the loss is {row['val_loss']}; lower `train_transformer.lr`.")
    model.train()
    return row
