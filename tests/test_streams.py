"""Streams are told apart by seed and name, and repeat."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hsae.streams import Stream
from tests import stages_log

ROOT = Path(__file__).resolve().parent.parent


def test_a_stream_repeats_and_differs_from_any_other():
    streams = [Stream(seed, name) for seed in (0, 1, 10) for name in ("a", "b", "0/a")]
    assert len({stream.number for stream in streams}) == len(streams)
    assert len({stream.of("part").number for stream in streams} | {stream.number for stream in streams}) == 18
    drawn = [torch.rand(4, generator=stream.torch()) for stream in streams for _ in range(2)]
    assert all((a == b).all() for a, b in zip(drawn[::2], drawn[1::2], strict=True))
    assert len({tuple(values.tolist()) for values in drawn}) == len(streams)
    assert (streams[0].numpy().random(3) == streams[0].numpy().random(3)).all()


def test_the_number_is_that_of_the_hash_and_fits_all_generators():
    stream = Stream(7, "weights")
    assert stream.number == 0xBC9B905A
    assert stream.of("level 1") == Stream(7, "weights/level 1")
    np.random.RandomState(stream.number)  # refuses what is larger


def test_seeding_leaves_the_global_generator_where_it_was():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with Stream(0, "weights").seeding():
        inside = torch.rand(2)
    assert (torch.rand(2) == expected).all()
    assert (inside == torch.rand(2, generator=Stream(0, "weights").torch())).all()


def test_every_seeder_hides_behind_a_stream():
    """Whatever the tiny pipeline does not run, too."""
    seeders = r"\b(manual_seed|default_rng|RandomState|SeedSequence|PCG64|MT19937|Philox|SFC64|random\.seed|Random)\("
    found = {
        str(file.relative_to(ROOT))
        for folder in ("hsae", "stages")
        for file in (ROOT / folder).rglob("*.py")
        if re.search(seeders, file.read_text())
    }
    assert found == {"hsae/streams.py"}


def logged(folder: Path, code: str) -> list[dict[str, Any]]:
    """What the log says of a stage that does this."""
    (folder / "stages").mkdir()
    # The project's own looks for torch before it is imported.
    (folder / "stages/__init__.py").write_text((ROOT / "stages/__init__.py").read_text())
    (folder / "stages/old.py").write_text(code)
    env = stages_log.logging_to(folder / "log", {**os.environ, "PYTHONPATH": str(ROOT)})
    subprocess.run([sys.executable, "-m", "stages.old"], cwd=folder, env=env, check=True)
    return stages_log.read(folder / "log")


OLD = """\
import torch

def forest(seed):
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))

def model(seed):
    torch.manual_seed(seed)
    return torch.nn.Linear(4, 4)

forest(28), model(28)
"""


def test_one_number_for_data_and_models_is_found_at_both_places(tmp_path: Path):
    assert stages_log.offences(logged(tmp_path, OLD)) == [
        "stages.old: drew from the global generator of torch",
        "stages/old.py:4 forest and stages/old.py:7 model: one number, 28 (no stream)",
        "stages/old.py:4: torch.Generator.manual_seed with 28, which no stream gave",
        "stages/old.py:7: torch.cuda.manual_seed_all with 28, which no stream gave",
        "stages/old.py:7: torch.manual_seed with 28, which no stream gave",
    ]


EVERY = """\
import random
import tempfile
import networkx
import numpy as np
import scipy.stats
import torch
from sklearn.cluster import KMeans
torch.manual_seed(1)
torch.random.manual_seed(2)
torch.cuda.manual_seed_all(3)
torch.Generator().manual_seed(4)
torch.Generator().seed()
random.seed(5)
random.Random(6)
np.random.seed(7)
np.random.default_rng(8)
np.random.RandomState(9)
np.random.Generator(np.random.PCG64(10))
np.random.default_rng(np.random.SeedSequence(11))
KMeans(2, random_state=12, n_init=1).fit(np.eye(3))
networkx.community.louvain_communities(networkx.path_graph(4), seed=13)
scipy.stats.bootstrap(([1, 2, 3],), np.mean, n_resamples=9, random_state=14)
random.random()
random.choice([None])
networkx.community.louvain_communities(networkx.path_graph(4), seed=None)
np.random.default_rng()
KMeans(2, random_state=None, n_init=1).fit(np.eye(3))
scipy.stats.bootstrap(([1, 2, 3],), np.mean, n_resamples=9)
tempfile.NamedTemporaryFile().close()
"""


def test_every_seeder_is_watched(tmp_path: Path):
    log = [entry for entry in logged(tmp_path, EVERY) if "seeder" in entry]
    lines = EVERY.splitlines()
    seeds: dict[int, set[str | None]] = {}
    for entry in log:
        seeds.setdefault(int(entry["frames"][0].split()[0].rpartition(":")[2]), set()).add(entry["seed"])
    first = lines.index("torch.manual_seed(1)") + 1
    unseeded = {
        at for at, line in enumerate(lines, 1) if re.search(r"\(\)$|None|9\)$", line) and "Temporary" not in line
    }
    unseeded -= {lines.index("np.random.RandomState(9)") + 1}
    expected = {}
    number = 0
    for at in range(first, len(lines)):
        if at in unseeded:
            expected[at] = {None}
        else:
            number += 1
            expected[at] = {str(number)}
    assert seeds == expected


NEW = """\
import numpy as np
import torch
from sklearn.decomposition import NMF
from hsae.streams import Stream
from hsae.workers import workers

def draw(stream):
    return stream.numpy().random()

if __name__ == "__main__":
    stream = Stream(0, "test")
    torch.randn(2, generator=stream.of("a").torch())
    with stream.of("b").seeding():
        torch.nn.Linear(2, 2)
    NMF(1, init="random", max_iter=1, tol=9, random_state=stream.of("c").number).fit(np.eye(2))
    with workers("test", 1) as each:
        list(each(draw, [stream.of("d"), stream.of("e")]))
"""


def test_streams_are_no_offence_in_workers_either(tmp_path: Path):
    log = logged(tmp_path, NEW)
    assert {entry["stream"] for entry in log if "given" in entry} == {f"0/test/{part}" for part in "abcde"}
    assert len({entry["process"] for entry in log}) == 2
    assert len({entry["frames"][0] for entry in log if "seeder" in entry}) == 4
    assert stages_log.offences(log) == []


def test_one_number_of_two_streams_and_a_stream_of_another_process_are_offences():
    def entry(process: int, **content: Any) -> dict[str, Any]:
        return {**content, "process": process, "stage": "stages.a"}

    log = [entry(1, given="5", stream="0/a"), entry(1, seeder="torch.manual_seed", seed="5", frames=["hsae/a.py:1 f"])]
    assert stages_log.offences(log) == []
    assert stages_log.offences([*log, entry(2, given="5", stream="0/b")]) == [
        "0/a and 0/b: two streams of one number, 5"
    ]
    other = entry(2, seeder="torch.manual_seed", seed="5", frames=["hsae/a.py:1 f"])
    assert stages_log.offences([*log, other]) == ["hsae/a.py:1: torch.manual_seed with 5, which no stream gave"]


TWICE = """\
import torch
from hsae.streams import Stream

def drawn(stream):
    with stream.seeding():
        return torch.nn.Linear(4, 4)

def main():
    stream = Stream(0, "weights")
    one = drawn(stream)
    other = drawn(stream)

def again():
    return [drawn(Stream(0, "others")) for _ in range(2)]

main(), again()
"""


def test_two_autoencoders_from_one_stream_in_two_lines_of_a_function_are_found(tmp_path: Path):
    assert stages_log.offences(logged(tmp_path, TWICE)) == [
        "stages/old.py:5 drawn < stages/old.py:10 main and stages/old.py:5 drawn < stages/old.py:11 main: "
        f"one number, {Stream(0, 'weights').number} (0/weights)"
    ]


def places(stream: str, *chains: str) -> list[str]:
    """The offences of stages that seed with one stream, by these chains: frames of hsae, then the stage's line."""
    log = []
    for chain in chains:
        frames = [f"{'' if frame.startswith('stages') else 'hsae/'}{frame}" for frame in chain.split(" < ")]
        stage = frames[-1].partition(".py")[0].replace("/", ".")
        both = {"process": 1, "stage": stage}
        log += [{"given": "5", "stream": f"0/{stream}", **both}]
        log += [{"seeder": "torch.manual_seed", "seed": "5", "frames": frames, **both}]
    return stages_log.offences(log)


PHASE1 = "sharpening.py:43 phase1 < stages/phase1.py:32 main"
PHASE2 = "curriculum.py:54 train_level2 < curriculum.py:25 phase2 < stages/phase2.py:31 main"
PHASE3 = "curriculum.py:68 phase3 < stages/phase3.py:26 main"
FLAT = "stages/flat_baseline.py:39 main"


def test_what_is_paired_on_purpose_is_no_offence_and_nothing_else_is_paired_with_it():
    fit, drawn = "training.py:144 fit", "variants.py:283 drawn"
    order = "phase1/order of batches"
    assert places(order, f"{fit} < {PHASE1}", f"{fit} < {FLAT}") == []
    assert places("phase2/revival", f"{fit} < {PHASE2}", f"{fit} < {FLAT}") == []
    # All phases replay one order.
    assert len(places(order, f"{fit} < {PHASE1}", f"{fit} < {PHASE2}", f"{fit} < {PHASE3}")) == 1
    assert len(places("order of batches", f"{fit} < {PHASE2}", f"{fit} < {PHASE3}")) == 1
    assert len(places("phase2/order of batches", f"{fit} < {PHASE2}", f"{fit} < {PHASE3}")) == 1
    # Level 2 starts as level 1.
    level1, flat = (
        f"{drawn} < stages/phase1.py:28 main",
        f"{drawn} < flat.py:30 drawn < stages/flat_baseline.py:36 main",
    )
    level2 = f"{drawn} < curriculum.py:36 stack < curriculum.py:24 phase2 < stages/phase2.py:31 main"
    weights = "weights of level 1"
    assert places(weights, level1, flat) == []
    assert len(places(weights, level1, flat, level2)) == 1
    assert len(places(weights, level1, level2)) == 1
    # One stage does twice what it may do once.
    assert len(places(weights, level1, f"{drawn} < stages/phase1.py:29 main")) == 1


def test_two_stages_may_repeat_what_the_project_derives_in_one_place():
    assert places("x", "a.py:1 f < b.py:2 g < stages/a.py:9 main", "a.py:1 f < b.py:2 g < stages/b.py:7 main") == []
    assert len(places("x", "a.py:1 f < b.py:2 g < stages/a.py:9 main", "a.py:1 f < b.py:3 g < stages/b.py:7 main")) == 1
    assert len(places("x", "a.py:1 f < stages/a.py:9 main", "a.py:1 f < stages/a.py:10 main")) == 1
    assert len(places("x", "stages/a.py:9 main", "stages/b.py:9 main")) == 1


def test_a_listed_parameter_that_nothing_uses_is_found():
    log = [{"used": "seed", "by": "a"}, {"used": "phase1.lr", "by": "a"}, {"used": "beta1", "by": "b"}]
    assert stages_log.unused(log, {"a": ["seed", "phase1", "beta1"], "b": ["beta1", "phase1.lr"]}) == [
        "a: beta1",
        "b: phase1.lr",
    ]
