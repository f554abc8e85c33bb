"""The README tells the truth about the committed results and files."""

import json
import re
from pathlib import Path

from hsae import readme

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_results_table_is_made_from_the_committed_metrics():
    evaluation = json.loads((ROOT / "metrics" / "evaluate.json").read_text(encoding="utf-8"))
    match = readme.TABLE.search(TEXT)
    assert match is not None
    assert match.group() == readme.table(evaluation)


def test_the_table_shows_each_dictionary_with_rounded_metrics():
    metrics = {
        "latents": 1024, "l0": 25.04, "dead_fraction": 0.0123, "fvu": 0.07149,
        "ce_recovered_zero": 0.98, "ce_recovered_mean": 0.95, "kl_recovered_mean": 0.9,
    }  # fmt: skip
    lines = readme.table({"hsae": {"level1": metrics}}).splitlines()
    assert lines[0].startswith("| dictionary | latents | L0 |")
    assert lines[2:] == ["| HSAE level1 | 1,024 | 25.0 | 1.2% | 0.071 | 0.980 | 0.950 | 0.900 |"]


def test_every_module_has_its_line_and_every_picture_exists():
    for module in (ROOT / "hsae").glob("[!_]*.py"):
        assert f"hsae/{module.name}" in TEXT, module.name
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        assert (ROOT / picture).is_file(), picture
