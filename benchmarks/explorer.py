"""Size of the explorer, and how long a browser takes until it can be used: of the default run, and of 10,000 latents.

Run `dvc repro` first. Argument: where to write the result. The large page has 8,000 and 2,000 latents of random
activations, with all that a real page says of a latent.
"""

import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csc_array, random_array

from benchmarks.training import machine
from hsae import explorer
from hsae.config import load
from hsae.evidence import Evidence
from hsae.explorer import ExplorerConfig, TextActs
from hsae.files import write_json
from hsae.latent_effects import Raised
from hsae.streams import Stream
from tests.browser import chromium

SIZES = {1: 8000, 2: 2000}
N_TOKENS, N_CHARACTERS, DENSITY = 131_072, 64, 0.01
ROUNDS = 7
SEARCH = """(() => {
  const start = performance.now();
  $("search").value = "abc";
  search();
  return performance.now() - start;
})()"""


def large(config: ExplorerConfig) -> str:
    """A page of 10,000 latents."""
    rng = np.random.default_rng(0)
    alphabet = "".join(chr(32 + i) for i in range(N_CHARACTERS))
    characters = rng.integers(N_CHARACTERS, size=N_TOKENS)
    child, latents = np.arange(SIZES[1]), {level: np.arange(n) for level, n in SIZES.items()}
    levels = np.concatenate([np.full(n, level) for level, n in SIZES.items()])
    indices = np.concatenate([*latents.values()])
    edges = pd.DataFrame({"parent": child % SIZES[2], "child": child, "weight": rng.random(SIZES[1])})
    evidence = Evidence(
        edges=edges.assign(share=0.5, p_parent_given_child=0.8),
        proxies=pd.DataFrame(
            {
                "latent": indices, "length": 3, "proxy_f1": 0.5, "proxy_f1_null": 0.1,
                "rule": " | ".join(["abc"] * 8), "codes": "[]", "method": [f"HSAE level{level}" for level in levels],
            }
        ),
        information=edges.assign(u=0.1, q=0.001),
        recurrence=pd.DataFrame({"level": levels, "latent": indices, "cosine": 0.5, "null": 0.3}),
        effects=pd.DataFrame(
            {
                "level": levels, "latent": indices, "tokens": 9, "kl": 0.1, "kl_null": 0.05,
                "kl_choice": 0.1, "kl_null_choice": 0.05,
            }
        ),
        causal={},
    )  # fmt: skip
    acts, known, raised = {}, {}, {}
    for level, n in SIZES.items():
        acts[level] = csc_array(random_array((N_TOKENS, n), density=DENSITY, rng=rng))
        acts[level].sort_indices()
        part = TextActs(acts[level], characters)
        known[level] = explorer.latents(part, part, rng.normal(size=(n, 128)), alphabet, config)
        raised[level] = Raised(rng.integers(N_CHARACTERS, size=(n, 32)), rng.normal(size=(n, 32)))
    content = {
        "title": "Explorer", "corpus": "noise", "facts": [], "width": config.snippet_chars,
        "strongest": config.strongest, "text": "".join(alphabet[i] for i in characters.tolist()),
        "levels": explorer.content(evidence, acts, known, raised, {}, alphabet, config),
    }  # fmt: skip
    return explorer.page(
        content, {level: explorer.snippets(own, config, Stream(level, "snippets")) for level, own in acts.items()}
    )


def measure(path: Path) -> dict[str, Any]:
    """Bytes, and medians of milliseconds from navigation to a page that answers, and from a key to what is found."""
    ready, found = [], []
    with chromium() as browser:
        for _ in range(ROUNDS):
            page = browser.new_page()
            page.goto(path.as_uri())
            ready.append(page.evaluate("performance.getEntriesByName('ready')[0].startTime"))
            found.append(page.evaluate(SEARCH))
            page.close()
    return {"bytes": path.stat().st_size, "ready_ms": median(ready), "search_ms": median(found)}


def main(result: str) -> None:
    """Measure and write."""
    config = load(ExplorerConfig, "build_explorer")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.html"
        path.write_text(large(config), encoding="utf-8")
        rows = {"default run": measure(Path("explorer.html").resolve()), "10,000 latents": measure(path)}
    print(rows)
    write_json(Path(result), {"machine": machine(), "rounds": ROUNDS, "pages": rows})


if __name__ == "__main__":
    main(*sys.argv[1:])
