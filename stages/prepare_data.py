"""Text -> tokens, four splits of whole documents, and what each token stands for."""

from dataclasses import asdict
from pathlib import Path

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
            tokens, starts, vocabulary, special = pretrained.tokenize(model, corpus.parts())
            documents = [document | {"start": start} for document, start in zip(documents, starts, strict=True)]
        else:
            tokenizer = CharTokenizer.fit(corpus.text)
            tokens, vocabulary, special = tokenizer.encode(corpus.text), list(tokenizer.alphabet), []
        starts = [document["start"] for document in documents]
        splits = split(starts, len(tokens), config.val_fraction, config.final_fraction, config.test_fraction)
        write_json(Path("data/tokenizer.json"), {"vocabulary": vocabulary, "special": special})
        write_json(Path("data/corpus.json"), {"name": config.corpus.value, "splits": splits, "documents": documents})
        write_tensors(Path("data/tokens.safetensors"), {"tokens": tokens})
        print(f"{config.corpus}: {len(corpus.text):,} characters, {len(tokens):,} tokens of {len(vocabulary):,}")


if __name__ == "__main__":
    main()
