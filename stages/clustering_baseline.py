"""Activations -> a clustering or a matrix factorisation, to serve as a dictionary. Argument: the method."""

import sys
from pathlib import Path

from hsae import run
from hsae.clustering import ClusteringConfig, fit_clusters
from hsae.dictionary import DictionaryConfig
from hsae.files import write_tensors
from stages.training_split import read_train


def main(method: str) -> None:
    """Run the stage."""
    with run.stage(f"clustering_baseline/{method}") as stage:
        device = stage.device()
        config = stage.params(ClusteringConfig, "clustering_baseline")
        dictionary = stage.params(DictionaryConfig)
        train = read_train(stage, device)
        x = train.x(slice(0, config.fit_tokens)).cpu().numpy()
        stream = dictionary.stream("clustering_baseline")
        tensors = fit_clusters(method, x, dictionary.widths(train.d_in), config, stream)
        write_tensors(Path(f"models/{stage.name}.safetensors"), tensors)


if __name__ == "__main__":
    main(sys.argv[1])
