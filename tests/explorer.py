"""A small explorer page, with text and labels that would break a careless one."""

import numpy as np
import pandas as pd
from scipy.sparse import csc_array

from hsae import explorer
from hsae.evidence import Evidence
from hsae.explorer import ExplorerConfig, TextActs
from hsae.latent_effects import Raised
from hsae.streams import Stream

HOSTILE = "</script><img src=x onerror=alert(1)><!--\u2028𝔘&amp;"
TEXT = ("the cat; THE DOG\n" * 30 + HOSTILE) * 4
ALPHABET = "".join(sorted(set(TEXT)))
CONFIG = ExplorerConfig(tokens=1000, strongest=4, per_band=2, snippet_chars=16, neighbours=2, characters=3, bins=8)
SIZES = {1: 12, 2: 4}


def _code(ngram: str) -> int:
    """An n-gram as the proxy's rules have it."""
    return sum(ALPHABET.index(c) * len(ALPHABET) ** place for place, c in enumerate(reversed(ngram)))


EVIDENCE = Evidence(
    edges=pd.DataFrame(
        {
            "parent": [0, 0, 0, 1, 1, 2], "child": [3, 4, 5, 6, 7, 8], "weight": [0.9, 0.5, 0.4, 0.8, 0.2, 0.3],
            "share": [0.8, 0.5, 0.4, 0.6, 0.2, 0.3], "p_parent_given_child": [0.7, 0.6, 0.5, 0.9, 0.8, 0.3],
        }
    ),
    proxies=pd.DataFrame(
        {
            "latent": [3, 4, 0], "length": [2, 1, 1], "proxy_f1": [0.9, 0.5, 0.4], "proxy_f1_null": [0.1, 0.1, 0.05],
            "rule": ['["th"]', '["<"]', '["T"]'], "codes": [f"[{_code(ngram)}]" for ngram in ("th", "<", "T")],
            "method": ["HSAE level1", "HSAE level1", "HSAE level2"],
        }
    ),
    information=pd.DataFrame({"parent": [0, 1], "child": [3, 6], "u": [0.25, 0.5], "q": [0.001, 0.5]}),
    recurrence=pd.DataFrame(
        {"level": [1] * 12 + [2] * 4, "latent": [*range(12), *range(4)], "cosine": 0.75, "null": 0.25}
    ),
    effects=pd.DataFrame(
        {
            "level": [1, 2], "latent": [3, 0], "tokens": [5, 7], "kl": [0.5, 0.25], "kl_null": 0.125,
            "kl_choice": [0.25, 1.0], "kl_null_choice": 0.125,
        }
    ),
    causal={"q_u": {"latents": {"level2": [{"latent": 0, "sufficient": {"value": 0.5, "interval": [0.25, 0.75]}}]}}},
)  # fmt: skip


def activations(n_tokens: int, n_latents: int, seed: int) -> csc_array:
    """Latents that are active on one token in ten."""
    rng = np.random.default_rng(seed)
    return csc_array(
        np.where(rng.random((n_tokens, n_latents)) < 0.1, rng.exponential(1.0, (n_tokens, n_latents)), 0.0)
    )


def raised(n_latents: int, seed: int) -> Raised:
    """Two characters that each latent raises, and two that it lowers."""
    rng = np.random.default_rng(seed)
    tokens = np.stack([rng.permutation(len(ALPHABET))[:4] for _ in range(n_latents)])
    return Raised(tokens, np.abs(rng.normal(size=tokens.shape)) * [1, 1, -1, -1])


def made() -> str:
    """The page."""
    characters = np.array([ALPHABET.index(character) for character in TEXT])
    acts = {level: activations(len(TEXT), n, level) for level, n in SIZES.items()}
    rng = np.random.default_rng(9)
    texts = {level: TextActs(own, characters) for level, own in acts.items()}
    known = {
        level: explorer.latents(own, own, rng.normal(size=(SIZES[level], 6)), ALPHABET, CONFIG)
        for level, own in texts.items()
    }
    listed = {level: raised(n, level) for level, n in SIZES.items()}
    labels = {1: {3: ["<b>the</b>"]}}
    content = {
        "title": "Explorer: a <test>", "corpus": "a test", "facts": [("latents", "16")], "text": TEXT,
        "width": CONFIG.snippet_chars, "strongest": CONFIG.strongest,
        "levels": explorer.content(EVIDENCE, acts, known, listed, labels, ALPHABET, CONFIG),
    }  # fmt: skip
    return explorer.page(
        content, {level: explorer.snippets(own, CONFIG, Stream(level, "test")) for level, own in acts.items()}
    )
