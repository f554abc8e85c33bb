"""Both levels, latent by latent, as one self-contained page: explorer.html."""

from pathlib import Path

from scipy.sparse import csc_array, csr_array

from hsae import causal, explorer, run
from hsae.coactivation import among, sparse_acts
from hsae.dictionary import DictionaryConfig
from hsae.explorer import ExplorerConfig, TextActs
from hsae.files import read_json, read_tensors, write_text
from stages.evidence import read_evidence
from stages.files import read_store
from stages.raised import read_raised
from stages.trained import read_hsae


def main() -> None:
    """Run the stage."""
    with run.stage("build_explorer") as stage:
        device = stage.device()
        config = stage.params(ExplorerConfig, "build_explorer")
        stream = stage.params(DictionaryConfig).stream("build_explorer")
        stores = {split: read_store(stage, split, device) for split in ("val", "test")}
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        vocabulary = read_json(stage.input("data/tokenizer.json"))["vocabulary"]
        rows = {name: slice(min(config.tokens, len(own)) // own.context * own.context) for name, own in stores.items()}
        parts = {name: store.scored(rows[name]) for name, store in stores.items()}
        # The text that is shown is whole; on what is masked nothing is active.
        whole, kept = (of[rows["test"]] for of in (stores["test"].activations.offsets, stores["test"].kept))
        corpus = read_json(stage.input("data/corpus.json"))["name"]
        evaluation = read_json(stage.input("metrics/hsae.json"))
        evidence, study = read_evidence(stage), read_json(stage.input("metrics/study.json"))

        acts, known, snippets = {}, {}, {}
        for name, basis in causal.hsae_bases(read_hsae(stage, device)).items():
            level = int(name.removeprefix("level"))
            choice, shown = (
                TextActs(
                    csc_array(sparse_acts(basis.encode, own.x(slice(None)).split(4096))),
                    tokens[own.activations.offsets.long()].long().numpy(),
                )
                for own in parts.values()
            )
            directions = basis.directions.double().cpu().numpy()
            acts[level] = csc_array(among(csr_array(shown.acts), kept.numpy()))
            known[level] = explorer.latents(choice, shown, directions, vocabulary, config)
            snippets[level] = explorer.snippets(acts[level], config, stream.of("snippets", level))
        text = [vocabulary[token] for token in tokens[whole.long()].tolist()]
        of_levels = {level: read_raised(stage, level) for level in acts}
        content = {
            "title": f"HSAE explorer: {corpus}",
            "corpus": corpus,
            "facts": explorer.facts(evaluation),
            "text": "".join(text) if max(map(len, text)) == 1 else text,
            "width": config.snippet_chars,
            "strongest": config.strongest,
            "levels": explorer.content(evidence, acts, known, of_levels, explorer.labels(study), vocabulary, config),
        }
        write_text(Path("explorer.html"), explorer.page(content, snippets))


if __name__ == "__main__":
    main()
