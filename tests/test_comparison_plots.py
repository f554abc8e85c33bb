from typing import Any

import numpy as np
from matplotlib.colors import to_hex

from hsae.comparison_plots import BETTER, SAME, WORSE, comparison_table

METRICS = {"l0": "L0", "fvu": "FVU"}
LABELS = {f"level{i}.{name}": f"level {i}: {label}" for i in (1, 2) for name, label in METRICS.items()}


def cell(mean: float, difference: float | None = None, p_holm: float = 0.5) -> dict[str, Any]:
    compared = {} if difference is None else {"difference": difference, "p_holm": p_holm}
    contexts = {"interval": [mean - 0.3, mean + 0.3]}
    return {"mean": mean, "interval": [mean - 0.1, mean + 0.1], "contexts": contexts, **compared}


SUMMARY = {
    "HSAE": {
        "level1.l0": cell(24.0, 4, 0.001), "level1.fvu": cell(0.5, -0.1, 0.01), "level2.l0": cell(12.0),
        "level2.fvu": cell(0.7, 0.1, 0.01), "hierarchy.p": cell(0.9),
    },
    "topk": {"level1.l0": cell(20.0), "level1.fvu": cell(0.6)},
    "kmeans": {"level1.l0": cell(1.0), "level1.fvu": cell(0.8, 0.2, 0.06)},
}  # fmt: skip


def test_the_table_marks_what_holm_lets_differ_and_nothing_else():
    axes = comparison_table(SUMMARY, {**LABELS, "hierarchy.p": "P"}, "topk").axes[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["level 1: HSAE", "level 1: topk (reference)", "level 1: kmeans", "level 2: HSAE"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["L0", "FVU"]
    mesh = axes.collections[0]
    axes.figure.canvas.draw()
    colors = [to_hex(tuple(color)) for color in np.asarray(mesh.get_facecolor())]
    # L0 is neither good nor bad; less error is better; .06 says nothing.
    assert colors == [SAME, BETTER, SAME, SAME, SAME, SAME, SAME, WORSE]
    texts = [text.get_text() for text in axes.texts]
    assert texts[1] == "0.5000\ns 0.4000 – 0.6000\nc 0.2000 – 0.8000"
    assert texts[0].startswith("24.00\n")
