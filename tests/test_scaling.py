"""docs/scaling.md has exactly the tables that the formulas and the committed benchmarks give."""

import json
import re
from pathlib import Path

import pytest

from hsae import scaling

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", scaling.TABLES)
def test_the_documents_tables_are_those_that_are_printed(name: str):
    sources, table = scaling.TABLES[name]
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", TEXT, re.DOTALL)
    assert found is not None
    assert found[1] == table(*(json.loads((ROOT / source).read_text(encoding="utf-8")) for source in sources))


def test_the_document_has_no_other_tables_of_this_kind():
    assert re.findall(r"<!-- (\w+) -->", TEXT) == list(scaling.TABLES)


def test_all_tables_are_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    scaling.main()
    printed = capsys.readouterr().out
    for block in re.findall(r"<!-- \w+ -->\n.*?<!-- /\w+ -->\n", printed, re.DOTALL):
        assert block in TEXT
    assert printed.count("<!-- /") == len(scaling.TABLES)


def test_steps_are_compared_with_two_rates():
    # Products at 4 TFLOP/s: 2 * 256 * 2048 * 4e6 tokens/s. Entries take the rest of the fitted step.
    def row(d: int, kind: str, method: str, ms: float, tokens_per_s: float = 0.0) -> dict[str, object]:
        return {"d": d, "d_sae": 8 * d, "batch": 4096, "kind": kind, "method": method, "ms": ms,
                "tokens_per_s": tokens_per_s}  # fmt: skip

    rate = 2 * 256 * 2048 * 4e6
    products = 4096 * 2 * 256 * 2048 / rate
    training = {
        "rows": [
            row(256, "topk", "matrix products, oneDNN", 0.0, 4e6),
            row(256, "topk", "hsae", 3e3 * products),
            row(256, "relu", "hsae", 5e3 * products),
            row(256, "relu", "sae_lens", 1.0),
        ]
    }
    levels = {"rows": [{"batch": 4096, "kind": "phase 3", "method": "by hand", "ms": 10.0}]}
    lines = scaling.measured(training, levels).splitlines()
    cells = {line.split(" | ")[0]: line.strip("| ").split(" | ") for line in lines[2:]}
    assert cells["| topk, 256 → 2,048"][-1] == "1.00"
    assert cells["| relu, 256 → 2,048"][-1] == "1.00", "five products at the products' rate"
    entries = 4096 * 8 * 256 * 32
    assert f"{entries / (2 * products) / 1e9:.0f}" in cells["| entries alone"]
    assert len(cells) == 5
