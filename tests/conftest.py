"""Fixtures that several test modules share: everything tiny, on the CPU."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from hsae import synthetic
from hsae.activations import Normalizer, Store, collect
from hsae.data import context_starts, windows
from hsae.gpt import GPT, GPTConfig
from hsae.synthetic import Forest, SyntheticData
from tests.forest import CONFIG, N, seeded

if TYPE_CHECKING:
    from tests.bucket import Bucket

torch.set_num_threads(1)
SLOWEST = "test_end_to_end.py"  # begun first, so that all else is done beside it

LAYER = 1
CONTEXT = 6
N_VOCAB = 5


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest module first."""
    items.sort(key=lambda item: item.path.name != SLOWEST)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Modules draw their initial weights from the global generator: the same ones in every run."""
    torch.manual_seed(0)


@pytest.fixture
def gpt() -> GPT:
    """A random transformer whose weights are large enough for every token to matter."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=3, n_head=2, d_model=8, context=CONTEXT, dropout=0.0), N_VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(15)
    return model.eval().requires_grad_(False)


@pytest.fixture
def corpus_tokens() -> torch.Tensor:
    """A corpus of 40 contexts and a little more; its first characters belong to no split below."""
    return torch.randint(N_VOCAB, (10 + 40 * CONTEXT + 3,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def store(gpt: GPT, corpus_tokens: torch.Tensor) -> Store:
    """All 40 contexts in their order, normalised by their own mean and scale."""
    starts = context_starts(torch.tensor([[10, len(corpus_tokens)]]), CONTEXT)
    cut = windows(corpus_tokens, starts, CONTEXT)
    collected = collect(lambda tokens: gpt.residual(tokens, LAYER), cut, starts, torch.tensor([0, 50, 100]))
    return Store(collected, Normalizer.fit(collected.acts), LAYER, CONTEXT)


@pytest.fixture
def masked(store: Store) -> Store:
    """The same where the last position of each context, on which no other depends, is masked and absurd."""
    rows = store.activations
    kept = rows.positions < CONTEXT - 1
    acts = torch.where(kept[:, None], rows.acts, 1e6)
    return replace(store, activations=replace(rows, acts=acts, kept=kept))


@pytest.fixture
def harmless(store: Store, masked: Store) -> Store:
    """The same mask, on the store as it was."""
    return replace(store, activations=replace(store.activations, kept=masked.kept))


@pytest.fixture(scope="session")
def forest() -> Forest:
    """Five parents of three children, and four singles."""
    return synthetic.ground_truth(CONFIG, seeded(1))


@pytest.fixture(scope="session")
def data(forest: Forest) -> SyntheticData:
    """Samples of the forest."""
    return synthetic.sample(forest, N, seeded(2))


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Bucket]":
    """An S3 bucket on this machine's loopback."""
    from tests.bucket import serving  # a second, which most workers do not need

    with serving(tmp_path_factory.mktemp("aws")) as bucket:
        yield bucket
