"""A few level-2 latents, chosen by stated criteria, and the evidence for and against each: case_studies/."""

from pathlib import Path

import torch
from scipy.sparse import csc_array

from hsae import case_page, case_studies, causal, feature_plots, run, steering
from hsae.activations import Store
from hsae.case_studies import CaseConfig, LevelActs, Material
from hsae.coactivation import among, sparse_acts
from hsae.dictionary import DictionaryConfig
from hsae.files import read_json, read_tensors, write_figure, write_json, write_text
from hsae.hierarchical import HierarchicalSAE
from hsae.interpretability_proxy import ngram_codes
from hsae.samples import record
from stages.evidence import read_evidence
from stages.files import read_store
from stages.raised import read_raised
from stages.trained import read_hsae
from stages.transformer import read_transformer

FOLDER = Path("case_studies")
SPLITS = ("val", "test")


def main() -> None:
    """Run the stage."""
    with run.stage("case_studies") as stage:
        device = stage.device()
        config = stage.params(CaseConfig, "case_studies")
        stream = stage.params(DictionaryConfig).stream("case_studies")
        model, hsae = read_transformer(stage, device), read_hsae(stage, device)
        basis, val, store = causal.hsae_bases(hsae)["level2"], *(read_store(stage, name, device) for name in SPLITS)
        everything, offsets = (
            read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"],
            store.activations.offsets,
        )
        tokens = everything[offsets.long()]
        vocabulary = read_json(stage.input("data/tokenizer.json"))["vocabulary"]
        raised = read_raised(stage, 2)
        corpus = read_json(stage.input("data/corpus.json"))["name"]
        text = [vocabulary[token] for token in tokens.tolist()]
        weight = hsae.level2.W_dec.detach().double().cpu().numpy()
        evidence = read_evidence(stage)
        longest = int(max([1, *evidence.proxies["length"].tolist()]))
        codes = ngram_codes(everything.numpy(), offsets.long().numpy(), len(vocabulary), longest)
        material = Material(evidence, _acts(hsae, val), _acts(hsae, store), weight, text, codes, raised, vocabulary)

        latents = case_studies.select(material.chosen, basis.directions.double().cpu().numpy(), config.cases)
        prompt = tokens[: config.prompt_chars].long().to(device)
        peaks = material.shown.h2.max(0).toarray().ravel()[latents]
        added = config.dose * torch.from_numpy(peaks).to(basis.directions)[:, None] * basis.directions[latents]
        ways = torch.cat([added.new_zeros(1, store.d_in), added * store.normalizer.scale])
        drawn = store.layer, prompt, ways, store.masked_positions, config.sample_chars, stream.of("continuations")
        samples = steering.sample(model, *drawn)
        plain, *steered = [
            case_studies.visible("".join(vocabulary[token] for token in sample)) for sample in samples.tolist()
        ]
        cases = []
        for place, (latent, sample) in enumerate(zip(latents, steered, strict=True), 1):
            write_figure(FOLDER / f"{place}.png", feature_plots.case(*case_studies.frames(material, latent, config)))
            found = case_studies.case(material, latent, config, stream.of("examples"))
            cases.append({**found, "figure": f"{place}.png", "steered": sample})
        page = case_page.markdown(
            corpus=corpus,
            material=material,
            cases=cases,
            prompt="".join(vocabulary[token] for token in prompt.tolist()),
            plain=plain,
            dose=config.dose,
        )
        chosen, scored = (own.activations.offsets.numpy() for own in (val, store))
        samples = [record("cases", "chosen", "val", chosen), record("cases", "scored", "test", scored)]
        write_json(Path("metrics/case_studies.json"), {**case_studies.summarize(material, cases), "samples": samples})
        write_text(FOLDER / "README.md", page)
        write_text(FOLDER / "index.html", case_page.page(page))


def _acts(hsae: HierarchicalSAE, store: Store) -> LevelActs:
    """What both levels do on a split, token by token."""
    x, kept = store.scored(slice(None)).x(slice(None)).split(4096), store.kept.numpy()
    h1, h2 = (csc_array(among(sparse_acts(basis.encode, x), kept)) for basis in causal.hsae_bases(hsae).values())
    return LevelActs(h1, h2, kept)


if __name__ == "__main__":
    main()
