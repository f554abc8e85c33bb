import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hsae import costs, hierarchical, variants
from hsae.losses import l1, mse

D, M, K, N, K2, B = 8, 32, 3, 16, 2, 64


def test_parameters_are_those_of_the_models():
    model = variants.build("relu", D, M, k=K, beta=0.1)
    assert costs.parameters(D, M) == sum(p.numel() for p in model.parameters())
    upper = variants.build("relu", M, N, k=K2, beta=0.1, nonnegative=True)
    both = hierarchical.HierarchicalSAE(model, upper)
    total = sum(p.numel() for p in both.parameters())
    assert costs.parameters(D, M) + costs.parameters(M, N) == total == 2 * 8 * 32 + 40 + 2 * 32 * 16 + 48


def test_a_dense_step_has_the_products_that_torch_counts():
    x = torch.randn(B, D)
    W_enc, W_dec = (torch.randn(shape, requires_grad=True) for shape in ((D, M), (M, D)))
    with FlopCounterMode(display=False) as counter:
        acts = (x @ W_enc).relu()
        (mse(acts @ W_dec, x) + l1(acts)).backward()
    assert counter.get_total_flops() == B * costs.dense_flops(D, M) == costs.relu_step(D, M, B).flops


def test_entries_are_counted_by_hand():
    # k = 3 rows of 8 coordinates, a multiply-add each, four times.
    assert costs.entry_flops(D, K) == 4 * 3 * 8 * 2
    assert costs.sparse_step(D, M, K, B) == costs.Step(B * 2 * 8 * 32, B * 192)
    # Level 2: ten rows of n = 16 for each of 3 latents; for each of 2, two rows of 16 and three of 8.
    assert costs.upper_entry_flops(D, K, N, K2) == 2 * (10 * 3 * 16 + 2 * 2 * 16 + 3 * 2 * 8)
    # The two rows that carry gradients to level 1 are not needed where it is frozen.
    frozen = costs.upper_entry_flops(D, K, N, K2, learns1=False)
    assert costs.upper_entry_flops(D, K, N, K2) - frozen == 2 * 2 * 3 * 16
    assert costs.upper_entry_bytes(D, K, N, K2) == 2 * (8 * 3 * 16 + 2 * 2 * 16 + 3 * 2 * 8)


def test_products_of_level_2_are_those_of_its_matrices():
    W_dec1, W_dec2, A = torch.randn(M, D), torch.randn(N, M), torch.randn(M, N)
    with FlopCounterMode(display=False) as counter:
        decoder, gram = W_dec2 @ W_dec1, W_dec2 @ W_dec2.T
        _ = decoder @ W_dec1.T, gram @ W_dec2, A.T @ W_dec1, W_dec1 @ (A.T @ W_dec1).T
    again = 2 * M * N * D  # A^T W_dec1 is written twice above
    assert counter.get_total_flops() - again == costs.upper_products(D, M, N)
    phase2, phase3 = (step(D, M, K, N, K2, B) for step in (costs.phase2_step, costs.phase3_step))
    assert phase2.products == phase3.products == B * 2 * D * M + costs.upper_products(D, M, N)
    assert phase3.entries - phase2.entries == B * (8 * D * K + 4 * K * N)


def test_bytes_by_hand():
    assert costs.level1_bytes(10, 100) == 18 * 2110
    assert costs.level2_bytes(100, 20) == 18 * 4120 + 16 * 2000
    assert costs.ADAM_TRAFFIC == 34


def test_seconds_follow_from_the_peaks():
    flops, moved = 0.5 * 989e12, 0.8 * 4.8e12
    d, m, k, batch = 4096, 131_072, 32, 16_384
    parts = costs.topk_seconds(d, m, k, batch)
    assert parts["products"] == pytest.approx(2 * d * m * batch / flops)
    assert parts["selection"] == pytest.approx(2 * m * batch / moved)
    assert parts["entries"] == pytest.approx(8 * d * k * batch / moved)
    assert parts["optimizer"] == pytest.approx(34 * (2 * d * m + d + m) / moved)
    assert costs.dense_seconds(d, m, batch)["products"] == pytest.approx(5 * parts["products"])
    narrow = costs.dense_seconds(100, m, batch)["products"]
    assert narrow == pytest.approx(12 * m * batch / moved), "below d = 155 memory is slower"
    assert costs.extraction_seconds(768, 12, 1e9) == pytest.approx(12 * 768**2 * 12 * 1e9 / flops)
    level2 = costs.level2_seconds(d, m, k, 2 * d, 16, batch)
    assert level2["products"] == pytest.approx(16 * d / batch * parts["products"])


def test_the_balances_that_the_document_names():
    ratio = 0.5 * 989e12 / (0.8 * 4.8e12)
    assert ratio == pytest.approx(129, abs=0.5)
    parts = costs.topk_seconds(1000, round(4 * 32 * ratio), 32, round(34 * ratio))
    assert parts["entries"] == pytest.approx(parts["products"], rel=1e-3)
    assert parts["optimizer"] == pytest.approx(parts["products"], rel=1e-2)


def test_exchange_between_gpus_by_hand():
    # Four GPUs: each sends 3/4 of the bytes twice.
    assert costs.all_reduce_seconds(450e9, 4) == pytest.approx(1.5)
    computing, exchange = costs.replicated_seconds(64, 256, 4, 1024, 4)
    assert computing == pytest.approx(sum(costs.topk_seconds(64, 256, 4, 256).values()))
    assert exchange == pytest.approx(1.5 * 4 * costs.parameters(64, 256) / 450e9)
    computing, exchange = costs.sharded_seconds(64, 256, 4, 1024, 4)
    assert computing == pytest.approx(sum(costs.topk_seconds(64, 256, 4, 1024).values()) / 4)
    # Activations from three others, candidates of three others, and the reconstruction's parts.
    assert exchange * 450e9 == pytest.approx(0.75 * 2 * 64 * 1024 + 3 * 6 * 4 * 1024 + 1.5 * 2 * 64 * 1024)


def test_two_rates_make_seconds():
    assert costs.Step(100.0, 6.0).seconds(50.0, 2.0) == 5.0
    assert costs.Step(100.0, 6.0).flops == 106.0
