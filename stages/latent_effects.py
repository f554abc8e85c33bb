"""Each latent of both levels taken out of the stream of ordinary text: how the next character changes."""

from pathlib import Path

import pandas as pd

from hsae import causal, feature_plots, latent_effects, run
from hsae.causal import Basis
from hsae.dictionary import DictionaryConfig
from hsae.files import write_csv, write_figure, write_json
from hsae.latent_effects import EffectsConfig, Raised
from hsae.samples import record
from stages.files import read_store
from stages.raised import write_raised
from stages.trained import read_hsae, read_untrained_hsae
from stages.transformer import read_transformer


def main() -> None:
    """Run the stage."""
    with run.stage("latent_effects") as stage:
        device = stage.device()
        config = stage.params(EffectsConfig, "latent_effects")
        stream = stage.params(DictionaryConfig).stream("latent_effects")
        model = read_transformer(stage, device)
        val, test = (read_store(stage, split, device) for split in ("val", "test"))

        def of_levels(bases: dict[str, Basis], prefix: str) -> tuple[pd.DataFrame, dict[str, Raised]]:
            tables, raised = [], {}
            for level, basis in bases.items():
                name = f"{prefix}{level}"
                found, raised[level] = latent_effects.chosen_and_scored(model, val, test, basis, config, name, stream)
                tables.append(found.assign(level=int(level.removeprefix("level"))))
            return pd.concat(tables, ignore_index=True), raised

        table, raised = of_levels(causal.hsae_bases(read_hsae(stage, device)), "")
        untrained, _ = of_levels(causal.hsae_bases(read_untrained_hsae(stage, device)), "untrained ")
        what, kept = "latents removed, effects, and tokens that are raised most", config.contexts * test.context
        samples = [
            record(what, "chosen", "val", val.activations.offsets[:kept].numpy(), stream.of("chosen on")),
            record(what, "scored", "test", test.activations.offsets[:kept].numpy(), stream.of("scored on")),
        ]
        summary = latent_effects.summarize(table, stream.of("latents drawn anew"))
        chance = latent_effects.summarize(untrained, stream.of("untrained latents drawn anew"))
        summary |= {f"untrained_{level}": found for level, found in chance.items()}
        write_json(Path("metrics/latent_effects.json"), {**summary, "samples": samples})
        write_csv(Path("plots/latent_effects.csv"), table)
        write_csv(Path("plots/latent_effects_untrained.csv"), untrained)
        write_raised(raised)
        write_figure(Path("plots/latent_effects.png"), feature_plots.latent_effects(table, untrained))


if __name__ == "__main__":
    main()
