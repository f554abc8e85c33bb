"""What the report shows: top-activating snippets of text, and the page itself."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Integer
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from torch import Tensor

from hsae import config
from hsae.activations import Store
from hsae.config import check_positive
from hsae.hierarchical import HierarchicalSAE


@dataclass
class ReportConfig:
    """Section `report`: bins of the density histograms; how many level-2 latents, children and snippets are shown."""

    density_bins: int
    n_parents: int
    n_children: int
    n_snippets: int
    snippet_chars: int

    def __post_init__(self) -> None:
        check_positive(self, vars(self))


@dataclass(frozen=True)
class Snippet:
    """A piece of the corpus around a strong activation: characters, each with its activation relative to the peak."""

    offset: int
    chars: list[tuple[str, float]]


@dataclass(frozen=True)
class Latent:
    """A latent of either level with its strongest snippets; a child with the edge from its parent (`graph.edges`)."""

    name: str
    density: float
    snippets: list[Snippet]
    edge: dict[str, float] | None
    children: list["Latent"]

    @property
    def label(self) -> str:
        """The strongest snippet up to its peak, which is set in brackets: what a figure has room for."""
        if not self.snippets:
            return "(never active)"
        chars = self.snippets[0].chars
        peak = max(range(len(chars)), key=lambda i: chars[i][1])
        before = "".join(char for char, _ in chars[max(peak - 14, 0) : peak])
        return f"{before}[{chars[peak][0]}]".replace("\n", "⏎")


def hierarchy(
    edges: pd.DataFrame,
    total: Float[Tensor, " d_sae2"],
    h1: Float[Tensor, "n d_sae1"],
    h2: Float[Tensor, "n d_sae2"],
    store: Store,
    tokens: Integer[Tensor, " corpus"],
    vocabulary: Sequence[str],
    config: ReportConfig,
) -> list[Latent]:
    """The level-2 latents of the largest activation in sum, each with its children of largest weight.

    That sum, `total`, is of other text than `store`: what is shown of latents does not choose them. `edges` holds a row
    per child and its parent (`graph.edges`); `h1` and `h2` are the activations on the rows of `store`, in their order;
    `tokens` are those of the whole corpus.
    """

    def latent(level: int, index: int, edge: dict[str, float] | None, children: list[Latent]) -> Latent:
        acts = (h1, h2)[level - 1][:, index]
        snippets = top_snippets(acts, store, tokens, vocabulary, config.n_snippets, config.snippet_chars)
        density = (acts > 0)[store.kept.to(acts.device)].double().mean().item()
        return Latent(f"level {level}, latent {index}", density, snippets, edge, children)

    latents = []
    for parent in total.topk(min(config.n_parents, len(total))).indices.tolist():
        children = edges.query(f"parent == {parent}").nlargest(config.n_children, "weight").to_dict("records")
        latents.append(latent(2, parent, None, [latent(1, int(edge["child"]), edge, []) for edge in children]))
    return latents


def forest(latents: list[Latent]) -> pd.DataFrame:
    """Trees of `hierarchy` for `plots.forest`: a row per child. Columns: parent, child, share, p_parent_given_child."""
    rows = [
        (_short(parent), _short(child), child.edge["share"], child.edge["p_parent_given_child"])
        for parent in latents
        for child in parent.children
        if child.edge
    ]
    return pd.DataFrame(rows, columns=["parent", "child", "share", "p_parent_given_child"])


def _short(latent: Latent) -> str:
    return f"{latent.name.split()[-1]}: {latent.label}"


def top_snippets(
    acts: Float[Tensor, " n"],
    store: Store,
    tokens: Integer[Tensor, " corpus"],
    vocabulary: Sequence[str],
    n: int,
    width: int,
) -> list[Snippet]:
    """The `n` contexts in which a latent is strongest, `width` characters of each around the peak.

    `acts` are the latent's activations on the rows of `store`, in their order; `tokens` are those of the whole corpus.
    """
    by_context = acts.unflatten(0, (-1, store.context))
    peaks = by_context.max(1)
    snippets = []
    for context in peaks.values.topk(min(n, len(by_context))).indices.tolist():
        peak = float(peaks.values[context])
        if peak <= 0:
            break
        start = max(int(peaks.indices[context]) - width * 3 // 4, 0)
        relative = (by_context[context, start : start + width] / peak).tolist()
        offset = int(store.activations.offsets[context * store.context + start])
        text = [vocabulary[int(token)] for token in tokens[offset : offset + len(relative)]]
        snippets.append(Snippet(offset, list(zip(text, relative, strict=True))))
    return snippets


def rows(evaluation: dict[str, Any]) -> pd.DataFrame:
    """metrics/evaluate.json as a frame: a row per dictionary, its family and name beside its metrics."""
    families = {"hsae": "HSAE", "flat": "flat SAE", "clustering": "clustering"}
    return pd.DataFrame(
        {"method": f"{title} {name.replace('_level2', ', level-2 width')}", "family": title, **metrics}
        for family, title in families.items()
        for name, metrics in evaluation.get(family, {}).items()
    )


HEADLINES = {
    "L0, level 1": ("level1.l0", None),
    "FVU of x, level 1": ("level1.fvu", None),
    "dead latents, level 1": ("level1.dead_fraction", None),
    "CE recovered (mean), level 1": ("recovered.level1.ce_recovered_mean", None),
    "L0, level 2": ("level2.l0", None),
    "FVU of x, level 2": ("level2.fvu", None),
    "dead latents, level 2": ("level2.dead_fraction", None),
    "CE recovered (mean), level 2": ("recovered.level2.ce_recovered_mean", None),
    **{
        f"{title}{note}": (f"hierarchy.{name}{suffix}", f"hierarchy.{name}_null{suffix}")
        for name, title in {
            "p_parent_given_child": "P(parent | child)",
            "explained_by_parent": "explained by parent",
            "u_children": "U of children",
            "sibling_cosine": "cosine of siblings",
            "groups": "active groups",
        }.items()
        for suffix, note in (
            ("_decoder" * (name == "p_parent_given_child"), ""),
            ("_coactivation", " (co-activation)"),
        )
    },
    "P(parent | child) beyond chance": ("hierarchy.p_parent_given_child_beyond_chance_decoder", None),
    "P beyond chance (co-activation)": ("hierarchy.p_parent_given_child_beyond_chance_coactivation", None),
    "share of weight from the parent": ("hierarchy.top_share", None),
    "parents that share information": ("information.parents_with_child", None),
    "AMI of groups and characters": ("ami.current_character", None),
}
"""Headlines of the controls: where metrics/control/*.json has the number, and its null.

Parents are those by the decoder where nothing else is said.
"""


def controls(results: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """metrics/control/*.json by control, for `control_plots.controls`. Columns: control, headline, value, null.

    `untrained` of metrics/hsae.json may be one of them.
    """
    numbers = {name: config.flatten(result) for name, result in results.items()}
    rows = [
        (name, headline, found.get(value), found.get(null or ""))
        for headline, (value, null) in HEADLINES.items()
        for name, found in numbers.items()
    ]
    frame = pd.DataFrame(rows, columns=["control", "headline", "value", "null"])
    return frame.astype({"value": float, "null": float})


def densities(acts: dict[str, Float[Tensor, "n _"]]) -> pd.DataFrame:
    """Share of tokens on which each latent is active, a row per latent, under its dictionary's name."""
    frames = [pd.DataFrame({"dictionary": name, "density": (a > 0).double().mean(0).cpu()}) for name, a in acts.items()]
    return pd.concat(frames, ignore_index=True)


def page(**content: object) -> str:
    """The self-contained HTML page (templates/report.html) with the given content."""
    environment = Environment(
        loader=PackageLoader("hsae"), autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html").render(**content)


def data_uri(png: Path) -> str:
    """A picture as a data: address, so that the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()


@torch.no_grad()
def encode(model: HierarchicalSAE, store: Store) -> tuple[Float[Tensor, "n d_sae1"], Float[Tensor, "n d_sae2"]]:
    """Activations of both levels on all rows of `store`; 0 on what is masked."""
    h1 = torch.cat([model.level1.encode(x) for x in store.x(slice(0, len(store))).split(4096)])
    h2 = torch.cat([model.level2.encode(chunk) for chunk in h1.split(4096)])
    for acts in (h1, h2):
        acts[~store.kept.to(acts.device)] = 0
    return h1, h2
