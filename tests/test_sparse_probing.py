import numpy as np
from scipy.sparse import csr_array
from sklearn.metrics import f1_score

from hsae.sparse_probing import MainLatents, f1, main_latents, rank


def test_main_latents_are_those_that_a_search_over_all_thresholds_finds():
    rng = np.random.default_rng(1)
    for _ in range(20):
        codes = np.round(rng.random((40, 5)) * (rng.random((40, 5)) < 0.4), 1)
        has = rng.random(40) < 0.4
        chosen, detected, f1 = [], np.zeros(40, dtype=bool), -0.03
        while True:
            trials = [
                (f1_score(has, detected | (codes[:, j] >= t)), j, t)
                for j in range(5)
                for t in sorted(set(codes[:, j]) - {0}, reverse=True)
            ]
            best = max(trials, key=lambda trial: trial[0])
            if best[0] <= f1 + 0.03:
                break
            f1 = best[0]
            chosen.append(best[1:])
            detected |= codes[:, best[1]] >= best[2]
        found = main_latents(rank(csr_array(codes)), has)
        assert [*zip(found.latents, found.thresholds, strict=True)] == chosen
        np.testing.assert_array_equal(found.detect(csr_array(codes)), detected)
        assert main_latents(rank(csr_array(codes)), has, most=1) == found.first()


def test_no_latent_of_an_empty_set_detects_anything():
    assert not MainLatents([], []).detect(csr_array(np.ones((3, 2)))).any()


def test_equal_activations_are_never_parted_by_a_threshold():
    codes = csr_array(np.array([[1.0], [1.0], [1.0], [0.5], [0.0]]))
    found = main_latents(rank(codes), np.array([True, True, False, True, True]))
    assert found == MainLatents([0], [0.5])
    assert f1(found.detect(codes), np.array([True, True, False, True, True])) == 6 / 8
