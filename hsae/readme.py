"""Keeps the tables of README.md equal to committed results: `python -m hsae.readme` after a run or a benchmark."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hsae.files import read_json, write_text
from hsae.report import rows
from hsae.sweep_plots import SIGNIFICANT

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


def pipeline(benchmark: dict[str, Any]) -> str:
    """benchmarks/pipeline.json as a Markdown table: seconds of each stage, the items of one added up."""
    runs = benchmark["runs"]
    found: dict[str, dict[str, list[float]]] = {}
    for run, measured in runs.items():
        for stage, seconds in measured["stages"].items():
            found.setdefault(stage.split("@")[0], {}).setdefault(run, []).append(seconds)
    lines = []
    for stage, by_run in found.items():
        most = max(len(items) for items in by_run.values())
        cells = [_seconds(by_run.get(run, []), most) for run in runs]
        lines.append([stage, *cells])
    totals = [f"{measured['seconds']:.0f} s" for measured in runs.values()]
    peaks = [f"{measured['peak_bytes'] / 1e9:.1f} GB" for measured in runs.values()]
    return _markdown(["", *runs], [*lines, ["all", *totals], ["memory of the largest process", *peaks]])


def information(benchmark: dict[str, Any]) -> str:
    """benchmarks/information.json as a Markdown table: seconds for all pairs of latents, ours and scikit-learn's."""
    seconds, (d_sae1, d_sae2) = benchmark["seconds"], benchmark["latents"]
    ours, theirs = seconds["bins"] + seconds["all pairs"], d_sae1 * d_sae2 * seconds["a pair, scikit-learn"]
    row = [f"{d_sae1:,} x {d_sae2:,}", f"{ours:.1f} s", f"{theirs:,.0f} s", f"{theirs / ours:,.0f}"]
    return _markdown(["latents", "hsae", "scikit-learn, from some of the pairs", "ratio"], [row])


def frontier(result: dict[str, Any]) -> str:
    """metrics/frontier.json as Markdown tables, one per level: FVU / CE recovered of methods at matched L0."""
    methods = result["methods"]
    places = {key.rpartition(".")[0] for found in methods.values() for key in found}  # level1.l0_8
    tables = []
    for number in (1, 2):
        level = f"level{number}"
        l0s = sorted((p.partition(".l0_")[2] for p in places if p.startswith(level)), key=float)
        head = [f"level {number}: FVU / CE recovered", *(f"L0 {l0}" for l0 in l0s)]
        lines = []
        for method, found in methods.items():
            pairs = [[found.get(f"{level}.l0_{l0}.{m}") for m in ("fvu", "ce_recovered_mean")] for l0 in l0s]
            cells = [" / ".join(filter(None, map(_mean, pair))) for pair in pairs]
            if any(cells):
                lines.append([method, *cells])
        tables.append(_markdown(head, lines))
    return "\n".join(tables)


def known(search: dict[str, Any]) -> str:
    """metrics/search.json as a Markdown table: a row per kind, by its chosen setting or at its start, and difficulties.

    Cells are the edges' average precision (of the least seed), MCC and L0: means over seeds.
    """
    found = search["chosen"]
    lines = []
    for kind in dict.fromkeys(kind for own in found.values() for kind in own):
        cells = [
            f"{own[kind]['edge_ap']['mean']:.3f} ({own[kind]['edge_ap']['least']:.3f}) / "
            f"{own[kind]['mcc']['mean']:.3f} / {own[kind]['l0']['mean']:.1f}" if kind in own else ""
            for own in found.values()
        ]  # fmt: skip
        lines.append([kind.replace("_", " "), *cells])
    return _markdown(["edge AP (least seed) / MCC / L0", *found], lines)


def causal(result: dict[str, Any]) -> str:
    """metrics/causal_tracing.json as a Markdown table: a row per task; CPR / CMD of some methods, * unlike neurons'."""
    methods = {
        "neurons": "neurons",
        "level 1": "level1",
        "level 2": "level2",
        "JumpReLU": "flat jumprelu",
        "PCA": "PCA",
    }
    lines = []
    for task, found in result["tasks"].items():
        counts = result["pairs"][task]["test"]
        cells = []
        for name in methods.values():
            tests = {m: result["comparisons"][m]["neurons"].get(name, {task: {}})[task] for m in ("cpr", "cmd")}
            marks = {m: "*" * (test.get("p_holm", 1) < SIGNIFICANT) for m, test in tests.items()}
            cells.append(" / ".join(f"{found['methods'][name][m]['value']:.2f}{marks[m]}" for m in marks))
        errors = [
            sum(found["shares"][error][kind]["value"] for error in ("e0", "e1")) for kind in ("sufficient", "necessary")
        ]
        economy = found["economy"]
        few = f"{economy['share']['value']:.2f} ({economy['level2_latents']} of {economy['level1_latents']:.0f})"
        before = f"{found['character_before']['value']:.2f}" if found["character_before"] else ""
        own = [f"{counts['kept']} of {counts['asked']}", f"{found['total_effect']['value']:.1f}", before]
        lines.append([task.replace("_", " "), *own, *cells, " / ".join(f"{error:.2f}" for error in errors), few])
    head = ["task", "test pairs", "effect (nats)", "character before", *methods, "e0 + e1", "few of level 2"]
    return _markdown(head, lines)


def latents(
    information: dict[str, Any],
    absorption: dict[str, Any],
    proxies: dict[str, Any],
) -> str:
    """What single latents are worth, a row per measure: both levels, flat TopK of either width, and chance.

    Chance is what both levels score before training, and a null that chooses as the measure does, where it has one.
    """
    names = {
        "hsae_level1": "HSAE level1", "hsae_level2": "HSAE level2",
        "flat_topk": "topk", "flat_topk_level2": "topk_level2",
        "untrained_hsae_level1": "untrained HSAE level1", "untrained_hsae_level2": "untrained HSAE level2",
    }  # fmt: skip
    probes = [information["probes"][name]["next_character"]["bound"] for name in names]
    entropy = information["probes"]["activations"]["next_character"]["entropy"]
    known = [absorption["methods"][name]["mean"] for name in names.values()]
    rules = [proxies[name] for name in names.values()]
    # The nulls of trained dictionaries: what is untrained has columns of its own.
    f1_null = max(own["first_feature_f1_null"] for own in known[:4])
    rule_null = max(rule["proxy_f1_null"]["mean"] for rule in rules[:4])
    lines = [
        ["told of the next character (nats)", *(f"{value:.2f}" for value in probes), f"of {entropy:.2f}"],
        ["F1 of the best latent for a concept", *(f"{own['first_feature_f1']:.2f}" for own in known), f"{f1_null:.2f}"],
        ["tokens whose concept is absorbed", *(f"{own['absorption']:.1%}" for own in known), ""],
        ["F1 of a short rule (proxy)", *(f"{rule['proxy_f1']['mean']:.2f}" for rule in rules), f"{rule_null:.2f}"],
        ["intruders found by a simulated rater (proxy)",
         *(f"{rule['proxy_intruder']['mean']:.0%}" for rule in rules), "20%"],
    ]  # fmt: skip
    head = ["level 1", "level 2", "TopK", "TopK, level-2 width", "untrained level 1", "untrained level 2", "null"]
    return _markdown(["", *head], lines)


def hierarchy(
    evaluation: dict[str, Any], information: dict[str, Any], clusters: dict[str, Any], *controls: dict[str, Any]
) -> str:
    """What the two levels know of each other, a row per measure, beside what it must be compared with."""
    trees = evaluation["hierarchy"], evaluation["untrained"]["hierarchy"]
    found = information["levels"], information["untrained"]["levels"]
    left = information["conditional_entropy"]["8"], information["untrained"]["conditional_entropy"]["8"]
    groups = clusters["taxonomy"], clusters["untrained"]["taxonomy"]

    def both(values: Iterable[float], form: str = ".2f") -> list[str]:
        return [format(value, form) for value in values]

    def of_trees(name: str) -> list[str]:
        return both(tree[name] for tree in trees)

    def of_groups(name: str) -> list[str]:
        return both(own[name]["current_character"] for own in groups)

    shares = {f"{control['information']['parents_with_child']:.1%}" for control in controls}
    least = min(control["information"]["parents_with_child"] for control in controls)
    beside = f"{least:.1%} in every control" if len(shares) == 1 else f"{least:.1%} or more in the controls"
    shuffled = trees[0]["p_parent_given_child_null_decoder"]
    lines = [
        ["P(parent active given child)", *of_trees("p_parent_given_child_decoder"),
         f"{shuffled:.2f} with parents shuffled"],
        ["the same beyond chance", *of_trees("p_parent_given_child_beyond_chance_decoder"), ""],
        ["the same, parents by co-activation", *of_trees("p_parent_given_child_beyond_chance_coactivation"), ""],
        ["parents with a child that tells of them", *both((own["parents_with_child"] for own in found), ".1%"), beside],
        ["share of a parent's entropy that a child takes away", *both((own["u_children"] for own in found), ".1%"),
         f"{found[0]['u_others']:.1%} another latent"],
        ["what its eight best children leave of it (median)", *both((own["median"] for own in left), ".0%"), ""],
        ["information against decoder weight, over children (Spearman)",
         *both(own["weight_correlation_children"] for own in found),
         f"{found[0]['weight_correlation']:.2f} over all pairs"],
        ["groups of level 2 and characters (AMI), by co-activation", *of_groups("level2_by_coactivation"),
         f"{of_groups('flat_by_coactivation')[0]} clusters of a flat SAE"],
        ["the same by decoder", *of_groups("level2_by_decoder"),
         f"{of_groups('flat_by_decoder')[0]} clusters of a flat SAE"],
    ]  # fmt: skip
    return _markdown(["", "HSAE", "untrained HSAE", "beside it"], lines)


def torture(campaign: dict[str, Any], checkpoints: dict[str, Any], determinism: dict[str, Any]) -> str:
    """What kills came to, and what it costs to lose nothing and to repeat to the bit, as a Markdown table."""
    kills, by = campaign["kills"], campaign["by_signal"]
    signals = ", ".join(f"{n} {name.replace('SIG', '', 1)}" for name, n in sorted(by.items()))
    stages = ", ".join(f"{n} {name}" for name, n in campaign["by_stage"].items())
    costs = ", ".join(f"{row['training']} {row['share']:.1%}" for row in checkpoints["rows"])
    ms = {(row["kind"], row["method"]): row["ms"] for row in determinism["rows"]}
    slower = ", ".join(f"{kind} {ms[kind, 'with'] / ms[kind, 'without'] - 1:.0%}" for kind, way in ms if way == "with")
    lines = [
        ["kills at random", f"{kills}: {signals}"],
        ["of", stages],
        ["resumed from a checkpoint", f"{campaign['resumed_from_a_checkpoint']} (the others began anew)"],
        ["ended otherwise than the run that was let alone", str(campaign["mismatches"] + campaign["failed_again"])],
        ["processes left running", str(campaign["orphans"])],
        ["tracebacks shown", str(campaign["with_traceback"])],
        [f"cost of a checkpoint every {checkpoints['interval_seconds']:.0f} s", costs],
        ["cost of deterministic algorithms", slower],
    ]
    return _markdown(["", ""], lines)


CONTROLS = ("trained", "random_decoder", "random_transformer", "shuffled_activations")
TABLES: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
    "results": (("metrics/evaluate.json",), results),
    "latents": (
        (
            "metrics/mutual_information.json", "metrics/absorption.json", "metrics/interpretability_proxy.json",
        ),
        latents,
    ),
    "hierarchy": (
        (
            "metrics/hsae.json", "metrics/mutual_information.json", "metrics/feature_clustering.json",
            *(f"metrics/control/{name}.json" for name in CONTROLS),
        ),
        hierarchy,
    ),
    "smollm2": (("examples/smollm2/metrics/evaluate.json",), results),
    "speed": (("benchmarks/training.json",), speed),
    "levels": (("benchmarks/levels.json",), levels),
    "pipeline": (("benchmarks/pipeline.json",), pipeline),
    "information": (("benchmarks/information.json",), information),
    "torture": (("benchmarks/torture.json", "benchmarks/checkpoints.json", "benchmarks/determinism.json"), torture),
    "frontier": (("metrics/frontier.json",), frontier),
    "known": (("metrics/search.json",), known),
    "causal": (("metrics/causal_tracing.json",), causal),
}  # fmt: skip
"""Table -> the files that it is made from, and how."""


def block(name: str) -> re.Pattern[str]:
    """What stands between a table's two comments."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


def main() -> None:
    """Rewrite the tables in place."""
    readme = Path("README.md")
    text = readme.read_text(encoding="utf-8")
    for name, (sources, table) in TABLES.items():
        content = table(*(read_json(Path(source)) for source in sources))
        text = block(name).sub(lambda _, content=content: content, text)
    write_text(readme, text)


def _mean(found: dict[str, Any] | None) -> str:
    """A mean over seeds, with a star if it differs from the reference's; nothing where there is none."""
    if found is None:
        return ""
    return f"{found['mean']:.3f}" + "*" * (found.get("p_holm", 1) < SIGNIFICANT)


def _seconds(items: list[float], most: int) -> str:
    """Seconds of a stage's items, added up; how many they are, where a run has more than one."""
    if not items:
        return ""
    return f"{sum(items):.0f} s" + (f" ({len(items)})" if most > 1 else "")


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, rule, *lines])


if __name__ == "__main__":
    main()
