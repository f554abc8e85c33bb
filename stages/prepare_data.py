"""Text -> tokens of three contiguous splits, and what each token stands for."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from hsae import pretrained, run
from hsae.causal_lm import ModelConfig, Source
from hsae.corpora import DataConfig, load_corpus
from hsae.data import CharTokenizer, split
from hsae.files import write_json, write_tensors


def main() -> None:
    """Run the stage."""
    with run.stage("prepare_data") as stage:
        config, model = stage.params(DataConfig, "prepare_data"), stage.params(ModelConfig, "model")
        corpus = load_corpus(config, stage.root / "data" / "downloads")
        documents = [asdict(document) for document in corpus.documents]
        if model.source == Source.hf:
            tokens, starts, vocabulary = pretrained.tokenize(model, corpus.text)
            for document in documents:
                document["start"] = int(np.searchsorted(starts, document["start"]))
        else:
            tokenizer = CharTokenizer.fit(corpus.text)
            tokens, vocabulary = tokenizer.encode(corpus.text), list(tokenizer.alphabet)
        splits = split(len(tokens), config.val_fraction, config.test_fraction)
        write_json(Path("data/tokenizer.json"), {"vocabulary": vocabulary})
        write_json(Path("data/corpus.json"), {"name": config.corpus.value, "splits": splits, "documents": documents})
        write_tensors(Path("data/tokens.safetensors"), {"tokens": tokens})
        print(f"{config.corpus}: {len(corpus.text):,} characters, {len(tokens):,} tokens of {len(vocabulary):,}")


if __name__ == "__main__":
    main()
