"""Keeps the tables of README.md equal to committed results: `python -m hsae.readme` after a run or a benchmark."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsae.files import read_json, write_text
from hsae.report import rows

BATCH = 4096  # of the benchmark's, the one that is shown


def results(evaluation: dict[str, Any]) -> str:
    """metrics/evaluate.json as a Markdown table, a row per dictionary."""
    head = ["dictionary", "latents", "L0", "dead", "FVU", "CE recovered (zero)", "CE recovered (mean)", "KL recovered"]
    lines = []
    for row in rows(evaluation).to_dict("records"):
        recovered = [
            f"{row[key]:.3f}" for key in ("fvu", "ce_recovered_zero", "ce_recovered_mean", "kl_recovered_mean")
        ]
        sparsity = [f"{row['latents']:,}", f"{row['l0']:.1f}", f"{row['dead_fraction']:.1%}"]
        lines.append([row["method"], *sparsity, *recovered])
    return _markdown(head, lines)


def speed(benchmark: dict[str, Any]) -> str:
    """benchmarks/training.json as a Markdown table: our tokens per second, and how many times another method's that is.

    The last column is the share of the limit that matrix products alone set in the same run: five of them for ReLU +
    L1, the encoder's for the sparse kinds.
    """
    peers = ["hsae, autograd", "sae_lens", "dictionary_learning", "sparsify"]
    found: dict[tuple[int, int, str], dict[str, float]] = {}
    for row in benchmark["rows"]:
        if row["batch"] == BATCH:
            found.setdefault((row["d"], row["d_sae"], row["kind"]), {})[row["method"]] = row["tokens_per_s"]
    lines = []
    for (d, d_sae, kind), methods in found.items():
        ours = methods["hsae"]
        limits = found[d, d_sae, "relu" if kind == "relu" else "topk"]
        limit = max(value for method, value in limits.items() if method.startswith("matrix products"))
        ratios = [f"{ours / methods[peer]:.1f}" if peer in methods else "" for peer in peers]
        lines.append([f"{kind}, {d} → {d_sae:,}", f"{ours / 1000:,.0f}k", *ratios, f"{ours / limit:.2f}"])
    head = ["", "tokens/s", *(f"× {name}" for name in ("autograd", "SAELens", "dictionary_learning", "sparsify"))]
    return _markdown([*head, "of the limit"], lines)


def levels(benchmark: dict[str, Any]) -> str:
    """benchmarks/levels.json as a Markdown table: milliseconds of a step by hand and by autograd."""
    found: dict[str, dict[str, float]] = {}
    for row in benchmark["rows"]:
        if row["batch"] == BATCH:
            found.setdefault(row["kind"], {})[row["method"]] = row["ms"]
    lines = [
        [kind, f"{ms['by hand']:.0f} ms", f"{ms['autograd']:.0f} ms", f"{ms['autograd'] / ms['by hand']:.1f}"]
        for kind, ms in found.items()
    ]
    return _markdown(["a step of", "by hand", "autograd", "ratio"], lines)


TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "results": ("metrics/evaluate.json", results),
    "speed": ("benchmarks/training.json", speed),
    "levels": ("benchmarks/levels.json", levels),
}


def block(name: str) -> re.Pattern[str]:
    """What stands between a table's two comments."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


def main() -> None:
    """Rewrite the tables in place."""
    readme = Path("README.md")
    text = readme.read_text(encoding="utf-8")
    for name, (source, table) in TABLES.items():
        content = table(read_json(Path(source)))
        text = block(name).sub(lambda _, content=content: content, text)
    write_text(readme, text)


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, rule, *lines])


if __name__ == "__main__":
    main()
