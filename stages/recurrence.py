"""The HSAE, and the control that is it from another seed -> which of its latents come again.

Beside it stands `untrained`: which latents of an HSAE at its start come again in another one at its start.
"""

from pathlib import Path

from hsae import feature_plots, hierarchical, recurrence, run
from hsae.dictionary import DictionaryConfig
from hsae.files import read_tensors, write_csv, write_figure, write_json
from stages.files import read_store
from stages.trained import read_hsae, read_untrained_hsae


def main() -> None:
    """Run the stage."""
    with run.stage("recurrence") as stage:
        device, stream = stage.device(), stage.params(DictionaryConfig).stream("recurrence")
        other = hierarchical.load(*read_tensors(stage.input("models/control/trained.safetensors"))).to(device)
        val = read_store(stage, "val", device)  # says which latents live
        table = recurrence.recurrence(read_hsae(stage, device), other, val, stream.of("nulls"))
        before, other_before = (read_untrained_hsae(stage, device, name) for name in ("hsae", "other_hsae"))
        by_chance = recurrence.recurrence(before, other_before, val, stream.of("nulls of the untrained"))
        found = {**recurrence.summarize(table), "untrained": recurrence.summarize(by_chance)}
        write_json(Path("metrics/recurrence.json"), found)
        write_csv(Path("plots/recurrence.csv"), table)
        write_figure(Path("plots/recurrence.png"), feature_plots.recurrence(table))


if __name__ == "__main__":
    main()
