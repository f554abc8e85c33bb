"""A few level-2 latents, chosen by stated criteria, and the evidence for and against each: case_studies/."""

from pathlib import Path

import torch
from scipy.sparse import csc_array

from hsae import case_page, case_studies, causal, feature_plots, run, steering
from hsae.case_studies import CaseConfig, Material
from hsae.coactivation import sparse_acts
from hsae.dictionary import DictionaryConfig
from hsae.files import read_json, read_tensors, write_figure, write_json, write_text
from hsae.shared_information import InformationConfig
from stages.evidence import read_evidence
from stages.files import read_store
from stages.raised import read_raised
from stages.trained import read_hsae
from stages.transformer import read_transformer

FOLDER = Path("case_studies")


def main() -> None:
    """Run the stage."""
    with run.stage("case_studies") as stage:
        device = stage.device()
        config, seed = stage.params(CaseConfig, "case_studies"), stage.params(DictionaryConfig).seed
        fdr = stage.params(InformationConfig, "mutual_information").fdr
        model = read_transformer(stage, device)
        basis, store = causal.hsae_bases(read_hsae(stage, device))["level2"], read_store(stage, "test", device)
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"][store.activations.offsets.long()]
        vocabulary = read_json(stage.input("data/tokenizer.json"))["vocabulary"]
        raised = read_raised(stage, 2)
        corpus = read_json(stage.input("data/corpus.json"))["name"]
        acts = csc_array(sparse_acts(basis.encode, store.x(slice(0, len(store))).split(4096)))
        text = [vocabulary[token] for token in tokens.tolist()]
        material = Material(read_evidence(stage), acts, text, raised, vocabulary, fdr)

        latents = case_studies.select(material.found, basis.directions.double().cpu().numpy(), config.cases)
        prompt = tokens[: config.prompt_chars].long().to(device)
        peaks = acts.max(0).toarray().ravel()[latents]
        added = config.dose * torch.from_numpy(peaks).to(basis.directions)[:, None] * basis.directions[latents]
        ways = torch.cat([added.new_zeros(1, store.d_in), added * store.normalizer.scale])
        generator = torch.Generator().manual_seed(seed)
        samples = steering.sample(model, store.layer, prompt, ways, config.sample_chars, generator)
        plain, *steered = [
            case_studies.visible("".join(vocabulary[token] for token in sample)) for sample in samples.tolist()
        ]
        cases = []
        for place, (latent, sample) in enumerate(zip(latents, steered, strict=True), 1):
            write_figure(FOLDER / f"{place}.png", feature_plots.case(*case_studies.frames(material, latent, config)))
            cases.append(
                {**case_studies.case(material, latent, config, seed), "figure": f"{place}.png", "steered": sample}
            )
        page = case_page.markdown(
            corpus=corpus,
            found=material.found,
            cases=cases,
            prompt="".join(vocabulary[token] for token in prompt.tolist()),
            plain=plain,
            dose=config.dose,
        )
        write_json(Path("metrics/case_studies.json"), case_studies.summarize(material.found, cases))
        write_text(FOLDER / "README.md", page)
        write_text(FOLDER / "index.html", case_page.page(page))


if __name__ == "__main__":
    main()
