"""Arithmetic over the processes that work together: that train one model, each on its share of every batch's rows.

All have shares of one size. So a mean over the batch is the mean of the processes' means, which is how gradients and
terms come together; what is no mean (counts of active latents, the batch's largest activations) is exchanged before it
is used. Where there is one process, all this does nothing. hsae/processes.py says how the processes start and end.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist

from hsae.config import check


def size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if size() > 1 else 0


def check_batch(n: int) -> None:
    """Raise ValueError if batches of `n` rows cannot be shared out equally."""
    check("batch_size", n, f"a multiple of `processes` (={size()})", n % size() == 0)


def share(x: Float[Tensor, "batch d"]) -> Float[Tensor, "share d"]:
    """This process's rows of a batch."""
    n = len(x) // size()
    return x[rank() * n : (rank() + 1) * n]


def total(x: Tensor) -> Tensor:
    """The sum of the processes' tensors, the same for all; it takes the place of `x`."""
    if size() > 1:
        with _contact():
            dist.all_reduce(x)
    return x


def gathered(values: Float[Tensor, " n"], most: int) -> Float[Tensor, " m"]:
    """The values of all processes, one after the other; of each the `most` largest, if it has more than these."""
    if size() == 1:
        return values
    if len(values) > most:
        values = values.topk(most, sorted=False).values
    numbers = torch.zeros(size(), dtype=torch.long, device=values.device)
    numbers[rank()] = len(values)
    found = total(numbers).tolist()
    parts = [values.new_zeros(max(found)) for _ in found]
    own = values.new_zeros(max(found))
    own[: len(values)] = values
    with _contact():
        dist.all_gather(parts, own)
    return torch.cat([part[:n] for part, n in zip(parts, found, strict=True)])


def averaged(model: nn.Module, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of the processes' terms; their gradients become the mean of all."""
    if size() == 1:
        return terms
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    parts = [*gradients, torch.stack(list(terms.values())).to(gradients[0])]
    flat = total(torch.cat([part.reshape(-1) for part in parts])).div_(size())
    *means, values = flat.split([part.numel() for part in parts])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    return dict(zip(terms, values.unbind(), strict=True))


def in_turn(compute: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """What `compute` makes of the parts, in their order, the same for all; each process computes every n-th one.

    Of a part it makes a tensor whose length is proportional to the part's.
    """
    for first in range(0, len(parts), size()):
        of_round = parts[first : first + size()]
        part = of_round[min(rank(), len(of_round) - 1)]  # at the end there may be none left for some
        own = compute(part).contiguous()
        for source, theirs in enumerate(of_round):
            result = own
            if source != rank():
                result = own.new_empty(len(own) * len(theirs) // len(part), *own.shape[1:])
            if size() > 1:
                with _contact():
                    dist.broadcast(result, source)
            yield result


def first_says(number: int) -> int:
    """The number that the first process names."""
    if size() == 1:
        return number
    return int(total(torch.tensor(number if rank() == 0 else 0, device=_device())))


def wait() -> None:
    """Wait until all processes have come here."""
    first_says(0)


def check_alike(model: nn.Module) -> None:
    """Raise ValueError if the processes' parameters are not the same to the bit, as each computes its own steps."""
    if size() == 1:
        return
    sums = torch.stack([p.detach().reshape(-1).view(torch.int32).sum() for p in model.parameters()])
    ends = torch.stack([sums, -sums])
    with _contact():
        dist.all_reduce(ends, dist.ReduceOp.MAX)
    if not torch.equal(ends[0], -ends[1]):
        raise ValueError("the processes have come apart: machines must be of one kind, with the same software.")


@contextmanager
def _contact() -> Iterator[None]:
    """Around what needs the other processes. Raises ConnectionError if one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = "another process of this training is gone: run it again, and it goes on from its last checkpoint."
        raise ConnectionError(reason) from error


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
