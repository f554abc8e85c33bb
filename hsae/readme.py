"""Keeps the results table of README.md equal to metrics/evaluate.json: `python -m hsae.readme` after a run."""

import re
from pathlib import Path
from typing import Any

from hsae.files import read_json, write_text
from hsae.report import rows

TABLE = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)


def table(evaluation: dict[str, Any]) -> str:
    """The results as a Markdown table, a row per dictionary."""
    head = ["dictionary", "latents", "L0", "dead", "FVU", "CE recovered (zero)", "CE recovered (mean)", "KL recovered"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for row in rows(evaluation).to_dict("records"):
        recovered = [
            f"{row[key]:.3f}" for key in ("fvu", "ce_recovered_zero", "ce_recovered_mean", "kl_recovered_mean")
        ]
        sparsity = [f"{row['latents']:,}", f"{row['l0']:.1f}", f"{row['dead_fraction']:.1%}"]
        lines.append([row["method"], *sparsity, *recovered])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    """Rewrite the table in place."""
    readme = Path("README.md")
    evaluation = read_json(Path("metrics/evaluate.json"))
    write_text(readme, TABLE.sub(lambda _: table(evaluation), readme.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
