"""Text -> tokens of three contiguous splits, and the character tokenizer."""

from dataclasses import asdict
from pathlib import Path

from hsae import run
from hsae.corpora import DataConfig, load_corpus
from hsae.data import CharTokenizer, split
from hsae.files import write_json, write_tensors


def main() -> None:
    """Run the stage."""
    with run.stage("prepare_data") as stage:
        config = stage.params(DataConfig, "prepare_data")
        corpus = load_corpus(config, stage.root / "data" / "downloads")
        tokenizer = CharTokenizer.fit(corpus.text)
        tokens = tokenizer.encode(corpus.text)
        splits = split(len(tokens), config.val_fraction, config.test_fraction)
        write_json(Path("data/tokenizer.json"), {"alphabet": tokenizer.alphabet})
        documents = [asdict(document) for document in corpus.documents]
        write_json(Path("data/corpus.json"), {"name": config.corpus.value, "splits": splits, "documents": documents})
        write_tensors(Path("data/tokens.safetensors"), {"tokens": tokens})
        print(f"{config.corpus}: {len(tokens):,} characters, alphabet of {tokenizer.n_vocab}")


if __name__ == "__main__":
    main()
