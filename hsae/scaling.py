"""The tables of docs/scaling.md: `python -m hsae.scaling` prints them. The formulas are those of costs.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsae import costs
from hsae.costs import HALF, Step
from hsae.files import read_json

LAYERS = {768: 12, 2304: 26, 4096: 32}  # of language models of that width
SIZES = [(d, m) for d in LAYERS for m in (16_384, 65_536, 131_072)]  # with n = 2 d latents of level 2
K, K2, BATCH, GPUS = 32, 16, 16_384, 8
TOKENS = ("1e9", "1e11")
GPU_HOUR, GB_MONTH = 3.5, 0.023  # dollars: assumed

BENCHMARK_BATCH = 4096
HSAE = (128, 1024, 25, 256, 22)  # d, m, k, n, k2 of the default one, which benchmarks/levels.json trains
FITTED = "topk, 256 → 2,048"  # the step that the rate of entries is taken from
# The default pipeline, which benchmarks/pipeline.json runs: tokens of each phase, and of a batch; its transformer.
PHASES, PHASE_BATCH = {"phase1": 2_000_000, "phase2": 2_000_000, "phase3": 1_000_000}, 2048
TRANSFORMER_TOKENS, TRANSFORMER_PARAMETERS = 2600 * 16 * 128, 12 * 3 * 128**2


def dollars(seconds: float) -> float:
    """Of a GPU's time."""
    return seconds / 3600 * GPU_HOUR


def state() -> str:
    """Parameters, and the memory that training them takes."""
    rows = []
    for d, m in SIZES:
        n, latents = 2 * d, 2 * HALF * BATCH * m
        sizes = costs.level1_bytes(d, m), costs.level2_bytes(m, n), latents
        millions = [f"{costs.parameters(*shape) / 1e6:,.0f}M" for shape in ((d, m), (m, n))]
        level1, level2, dense = (f"{size / 1e9:.1f}" for size in sizes)
        rows.append([f"{d:,}", f"{m:,}", millions[0], level1, f"{n:,}", millions[1], level2, dense])
        rows[-1].append(f"{sum(sizes) / costs.MEMORY:.0%}")
    head = ["d", "m", "parameters", "GB", "n", "of level 2", "GB", "B × m latents, GB", "of one H200"]
    return _table(head, rows)


def flops() -> str:
    """MFLOPs per token."""
    rows = []
    for d, m in SIZES:
        n = 2 * d
        level1 = [costs.dense_flops(d, m), costs.encoder_flops(d, m), costs.entry_flops(d, K)]
        level2 = [costs.upper_entry_flops(d, K, n, K2), costs.upper_products(d, m, n) / BATCH]
        values = [*level1, *level2, costs.forward_flops(d, LAYERS[d])]
        rows.append([f"{d:,}", f"{m:,}", *(f"{value / 1e6:,.1f}" for value in values)])
    level2 = ["level 2: entries", f"products / {BATCH:,}"]
    return _table(["d", "m", "ReLU + L1", "TopK: encoder", "entries", *level2, "language model"], rows)


def step() -> str:
    """Milliseconds of a step of level 1 on one H200, what takes longest, and what a billion tokens cost."""
    rows, parts = [], {}
    for d, m in SIZES:
        dense, parts = sum(costs.dense_seconds(d, m, BATCH).values()), costs.topk_seconds(d, m, K, BATCH)
        total, largest = sum(parts.values()), max(parts, key=lambda name: parts[name])
        prices = [f"{dollars(1e9 / BATCH * seconds):.2f}" for seconds in (dense, total)]
        cells = [_ms(dense), *map(_ms, parts.values()), _ms(total)]
        rows.append([f"{d:,}", f"{m:,}", *cells, largest, f"{BATCH / total / 1e6:.2f}M", *prices])
    head = ["d", "m", "ReLU + L1", *(f"TopK: {name}" for name in parts), "all", "largest", "tokens/s"]
    return _table([*head, "$ per 1e9 tokens: ReLU + L1", "TopK"], rows)


def level2() -> str:
    """Milliseconds that level 2 adds in phase 3."""
    rows, parts = [], {}
    for d, m in SIZES:
        parts = costs.level2_seconds(d, m, K, 2 * d, K2, BATCH)
        total, level1 = sum(parts.values()), sum(costs.topk_seconds(d, m, K, BATCH).values())
        cells = [*map(_ms, parts.values()), _ms(total), f"{total / level1:.1f}"]
        rows.append([f"{d:,}", f"{m:,}", f"{2 * d:,}", *cells])
    return _table(["d", "m", "n", *parts, "all", "× TopK of level 1"], rows)


def parallel() -> str:
    """Milliseconds of a TopK step on eight H200, and how many times faster than on one that is."""
    rows = []
    for d, m in SIZES:
        one, cells = sum(costs.topk_seconds(d, m, K, BATCH).values()), []
        for way in (costs.replicated_seconds, costs.sharded_seconds):
            computing, exchange = way(d, m, K, BATCH, GPUS)
            cells += [_ms(computing), _ms(exchange), f"{one / (computing + exchange):.1f}"]
        rows.append([f"{d:,}", f"{m:,}", _ms(one), *cells])
    ways = [name for way in ("replicated", "sharded") for name in (f"{way}: computing", "exchange", "speed-up")]
    return _table(["d", "m", "one GPU", *ways], rows)


def storage() -> str:
    """Storing activations against computing them again."""
    rows = []
    for d, layers in LAYERS.items():
        rate = HALF * d * BATCH / sum(costs.topk_seconds(d, 65_536, K, BATCH).values())
        for tokens in TOKENS:
            size, seconds = HALF * d * float(tokens), costs.extraction_seconds(d, layers, float(tokens))
            month, again = size / 1e9 * GB_MONTH, dollars(seconds)
            cells = [f"{size / 1e12:,.1f}", f"{month:,.0f}", f"{seconds / 3600:,.2f}", f"{again:,.2f}"]
            rows.append([f"{d:,}", tokens, *cells, f"{month / again:.0f}", f"{rate / 1e9:.1f}"])
    computing = ["GPU-hours to compute them", "$", "months' price / that"]
    return _table(["d", "tokens", "TB", "$ a month", *computing, "GB/s to train from"], rows)


def product_rate(training: dict[str, Any]) -> float:
    """FLOPs per second of the fastest product in benchmarks/training.json."""
    return max(
        costs.encoder_flops(row["d"], row["d_sae"]) * row["tokens_per_s"]
        for row in training["rows"]
        if row["kind"] == "topk" and row["method"].startswith("matrix products")
    )


def measured_steps(training: dict[str, Any], levels: dict[str, Any]) -> dict[str, tuple[Step, float]]:
    """Our own steps of both benchmarks, and the seconds that they took."""
    found = {}
    for row in training["rows"]:
        d, m, batch, kind = row["d"], row["d_sae"], row["batch"], row["kind"]
        kinds = {"relu": costs.relu_step(d, m, batch), "topk": costs.sparse_step(d, m, K, batch)}
        if batch == BENCHMARK_BATCH and row["method"] == "hsae" and kind in kinds:
            found[f"{kind}, {d} → {m:,}"] = kinds[kind], row["ms"] / 1e3
    kinds = hsae_steps(BENCHMARK_BATCH)
    for row in levels["rows"]:
        if row["batch"] == BENCHMARK_BATCH and row["method"] == "by hand" and row["kind"] in kinds:
            found[row["kind"]] = kinds[row["kind"]], row["ms"] / 1e3
    return found


def hsae_steps(batch: int) -> dict[str, Step]:
    """Of the default HSAE, by the names of benchmarks/levels.json."""
    return {
        "flat JumpReLU": costs.sparse_step(*HSAE[:3], batch),
        "phase 2": costs.phase2_step(*HSAE, batch),
        "phase 3": costs.phase3_step(*HSAE, batch),
    }


def measured(training: dict[str, Any], levels: dict[str, Any]) -> str:
    """FLOPs of our steps, the rate reached, and milliseconds as measured and as two rates predict them."""
    rate, steps = product_rate(training), measured_steps(training, levels)
    fitted, seconds = steps[FITTED]
    entry_rate = fitted.entries / (seconds - fitted.products / rate)
    rows = []
    for name, (cost, seconds) in steps.items():
        reached, predicted = cost.flops / seconds, cost.seconds(rate, entry_rate)
        work = [f"{cost.products / 1e9:.2f}", f"{cost.entries / 1e9:.2f}", f"{reached / 1e9:.0f}"]
        rows.append([name, *work, f"{reached / rate:.2f}", _ms(seconds), _ms(predicted), f"{predicted / seconds:.2f}"])
    for name, alone in (("products alone", rate), ("entries alone", entry_rate)):
        rows.append([name, "", "", f"{alone / 1e9:.0f}", f"{alone / rate:.2f}", "", "", ""])
    head = ["a step of", "GFLOPs of products", "on entries", "GF/s", "of the products' rate"]
    return _table([*head, "ms", "predicted", "ratio"], rows)


def stages(training: dict[str, Any], pipeline: dict[str, Any]) -> str:
    """FLOPs of whole stages, and the rate reached from start to end."""
    rate, seconds = product_rate(training), pipeline["runs"]["from nothing"]["stages"]
    # Of a step of the transformer forward is 2 FLOPs a parameter, backward 4.
    found = {"train_transformer": (TRANSFORMER_TOKENS, 6.0 * TRANSFORMER_PARAMETERS * TRANSFORMER_TOKENS)}
    for cost, (name, tokens) in zip(hsae_steps(PHASE_BATCH).values(), PHASES.items(), strict=True):
        found[name] = tokens, cost.flops * tokens / PHASE_BATCH
    rows = []
    for name, (tokens, total) in found.items():
        reached = total / seconds[name]
        cells = [f"{total / 1e9:,.0f}", f"{seconds[name]:.0f}", f"{reached / 1e9:.0f}", f"{reached / rate:.2f}"]
        rows.append([name, f"{tokens:,}", *cells])
    return _table(["stage", "tokens", "GFLOPs", "s", "GF/s", "of the products' rate"], rows)


TABLES: dict[str, tuple[list[str], Callable[..., str]]] = {
    "state": ([], state),
    "flops": ([], flops),
    "step": ([], step),
    "level2": ([], level2),
    "parallel": ([], parallel),
    "storage": ([], storage),
    "measured": (["benchmarks/training.json", "benchmarks/levels.json"], measured),
    "stages": (["benchmarks/training.json", "benchmarks/pipeline.json"], stages),
}
"""Tables by the names of the comments around them: their sources, and what makes them."""


def main() -> None:
    """Print all tables with their comments."""
    for name, (sources, table) in TABLES.items():
        content = table(*(read_json(Path(source)) for source in sources))
        print(f"<!-- {name} -->\n{content}<!-- /{name} -->\n")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, rule, *rows])


if __name__ == "__main__":
    main()
