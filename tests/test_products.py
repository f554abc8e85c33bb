"""Products are torch's up to rounding, whichever library computes them and however their factors lie in memory."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hsae import products
from hsae.products import Linear, gram, linear, product


@pytest.fixture(params=[True, False], ids=["oneDNN", "plain"])
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not products.ONEDNN:
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(products, "ONEDNN", request.param)
    return request.param


def ways_to_lie_in_memory(rows: int, columns: int) -> list[Tensor]:
    matrix = torch.randn(rows, columns)
    return [matrix, matrix.T.contiguous().T, torch.randn(rows, columns + 3)[:, 2:-1]]


def test_product_with_and_without_bias(onednn: bool):  # noqa: ARG001
    bias = torch.randn(5)
    for a in ways_to_lie_in_memory(7, 3):
        for b in ways_to_lie_in_memory(3, 5):
            torch.testing.assert_close(product(a, b), a @ b)
            torch.testing.assert_close(product(a, b, bias), a @ b + bias)
            torch.testing.assert_close(product(a.double(), b.double()), a.double() @ b.double())


@pytest.mark.parametrize("shape", [(0, 3, 5), (7, 0, 5), (1, 1, 1), (4, 1, 3)], ids=str)
def test_products_of_nothing_and_of_single_rows(onednn: bool, shape: tuple[int, int, int]):  # noqa: ARG001
    rows, inner, columns = shape
    a, b, bias = torch.randn(rows, inner), torch.randn(inner, columns), torch.randn(columns)
    torch.testing.assert_close(product(a, b, bias), a @ b + bias)
    torch.testing.assert_close(linear(a, b.T, bias), a @ b + bias)


def test_gram_of_narrow_and_wide(onednn: bool):  # noqa: ARG001
    for a in ways_to_lie_in_memory(9, 4):
        for b in [*ways_to_lie_in_memory(9, 2), *ways_to_lie_in_memory(9, 6)]:
            torch.testing.assert_close(gram(a, b), a.T @ b)


@pytest.mark.parametrize("shape", [(6, 4), (2, 5, 4)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_and_its_gradients(onednn: bool, shape: tuple[int, ...], with_bias: bool):
    inputs = [torch.randn(size, requires_grad=True) for size in [shape, (3, 4), (3,)][: 2 + with_bias]]
    target = torch.randn(*shape[:-1], 3)
    out = linear(*inputs)
    torch.testing.assert_close(out, F.linear(*inputs))
    assert (type(out.grad_fn).__name__ == "_LinearBackward") is onednn
    found = torch.autograd.grad((out * target).sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad((F.linear(*inputs) * target).sum(), inputs))


def test_the_layer_is_linear_of_its_weight(onednn: bool):  # noqa: ARG001
    x, layer = torch.randn(2, 5, 4), Linear(4, 3)
    assert torch.equal(layer(x), linear(x, layer.weight))


def test_linear_in_double_precision_passes_gradcheck():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear, (x, weight))


def test_gradients_are_computed_of_nothing_but_what_needs_them(onednn: bool):  # noqa: ARG001
    x, layer = torch.randn(6, 4, requires_grad=True), Linear(4, 3).requires_grad_(False)
    linear(x, layer.weight).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
