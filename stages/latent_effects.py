"""Each latent of both levels taken out of the stream of ordinary text: how the next character changes."""

from pathlib import Path

import pandas as pd

from hsae import causal, feature_plots, latent_effects, run
from hsae.dictionary import DictionaryConfig
from hsae.files import write_csv, write_figure, write_json
from hsae.latent_effects import EffectsConfig
from stages.files import read_store
from stages.raised import write_raised
from stages.trained import read_hsae
from stages.transformer import read_transformer


def main() -> None:
    """Run the stage."""
    with run.stage("latent_effects") as stage:
        device = stage.device()
        config, seed = stage.params(EffectsConfig, "latent_effects"), stage.params(DictionaryConfig).seed
        model = read_transformer(stage, device)
        store = read_store(stage, "test", device)
        tables, raised = [], {}
        for name, basis in causal.hsae_bases(read_hsae(stage, device)).items():
            found = latent_effects.effects(model, store, basis, config, name, seed)
            tables.append(found.table.assign(level=int(name.removeprefix("level"))))
            raised[name] = found.raised
        table = pd.concat(tables, ignore_index=True)
        write_json(Path("metrics/latent_effects.json"), latent_effects.summarize(table))
        write_csv(Path("plots/latent_effects.csv"), table)
        write_raised(raised)
        write_figure(Path("plots/latent_effects.png"), feature_plots.latent_effects(table))


if __name__ == "__main__":
    main()
