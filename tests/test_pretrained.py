from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from hsae import pretrained
from hsae.causal_lm import ModelConfig, Source
from hsae.files import read_tensors, write_tensors
from hsae.pretrained import PretrainedLM
from hsae.streams import Stream
from tests.hf_models import SHAPES, TEXT, save_model, save_tokenizer

CONTEXT = 12
VOCABULARY = ["<s>", "a", "b", "\n"]
PREFIX = torch.tensor([[0, 3]])  # the first token and the line break


def config(folder: Path | str, context: int = CONTEXT, gguf_file: str | None = None) -> ModelConfig:
    return ModelConfig(Source.hf, str(folder), gguf_file, False, context)


def saved(folder: Path, kind: str) -> tuple[PreTrainedModel, PretrainedLM, torch.Tensor]:
    """The model itself, ours after a way through files, and tokens."""
    theirs = save_model(folder, kind)
    tensors, header = pretrained.convert(config(folder), VOCABULARY)
    write_tensors(folder / "converted.safetensors", tensors, header)
    ours = pretrained.load(*read_tensors(folder / "converted.safetensors"))
    tokens = torch.randint(400, (3, CONTEXT), generator=torch.Generator().manual_seed(1))
    return theirs, ours, tokens


@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_streams_and_logits_are_the_models_own_after_the_prefix(tmp_path: Path, kind: str):
    theirs, ours, tokens = saved(tmp_path, kind)
    begun = torch.cat([PREFIX.expand(3, -1), tokens], 1)
    expected = theirs(begun, output_hidden_states=True)
    assert (ours.n_layer, ours.context, ours.n_vocab) == (3, CONTEXT, 400)
    torch.testing.assert_close(ours(tokens), expected.logits[:, 2:])
    for layer in (-1, 0, 1):  # the last of their hidden states is normalised
        stream = ours.residual(tokens, layer)
        torch.testing.assert_close(stream, expected.hidden_states[layer + 1][:, 2:])
    for layer in (-1, 0, 1, 2):
        stream = ours.residual(tokens, layer)
        torch.testing.assert_close(ours.logits(stream, layer), expected.logits[:, 2:])
        torch.testing.assert_close(ours.last_logits(stream, layer), expected.logits[:, -1])


@pytest.mark.parametrize("kind", SHAPES)
def test_a_changed_stream_reaches_the_logits_of_later_positions_alone(tmp_path: Path, kind: str):
    _, ours, tokens = saved(tmp_path, kind)
    stream = ours.residual(tokens, 1)
    changed = stream.clone()
    changed[:, 5, 0] += 1
    moved = (ours.logits(changed, 1) - ours.logits(stream, 1)).abs().amax(-1)
    assert (moved[:, :5] == 0).all()
    assert (moved[:, 5:] > 0).all()
    stream.requires_grad_()
    ours.logits(stream, 1)[:, 7].sum().backward()
    assert stream.grad is not None
    assert (stream.grad[:, 8:] == 0).all()
    assert (stream.grad[:, :8].abs().sum(-1) > 0).all()
    assert torch.equal(ours.residual(tokens, 1), ours.residual(tokens, 1))  # hooks are gone


def test_tokens_stand_for_the_text_piece_by_piece(tmp_path: Path):
    save_tokenizer(tmp_path)
    save_model(tmp_path)
    tokens, starts, vocabulary, special = pretrained.tokenize(config(tmp_path), [TEXT])
    assert len(vocabulary) == 400  # the tokenizer has fewer
    pieces = [vocabulary[token] for token in tokens.tolist()]
    assert "".join(pieces) == TEXT
    assert (starts, special) == ([0], [0])
    assert " speak" in pieces
    tokens, *_ = pretrained.tokenize(config(tmp_path), ["a π b"])  # not seen: two bytes, two tokens
    assert [vocabulary[token] for token in tokens.tolist()] == ["a", " ", "�", "�", " ", "b"]


def test_no_token_lies_in_two_documents_and_those_that_stand_for_no_text_are_named(tmp_path: Path):
    save_tokenizer(tmp_path)
    save_model(tmp_path)
    documents = ["Speak, spe", "ak.\n<s>All:"]
    found = pretrained.tokenize(config(tmp_path), documents)
    pieces = [found.vocabulary[token] for token in found.tokens.tolist()]
    assert "".join(pieces[: found.starts[1]]) == documents[0]
    assert "".join(pieces[found.starts[1] :]) == documents[1]
    assert found.special == [0]
    assert (found.tokens == 0).sum() == 1  # what spells it out becomes it


def test_an_untrained_model_is_another_of_the_same_architecture(tmp_path: Path):
    _, ours, tokens = saved(tmp_path, "llama")
    header = read_tensors(tmp_path / "converted.safetensors")[1]
    first, again, other = (pretrained.untrained(header, Stream(seed, "test")) for seed in (1, 1, 2))
    assert torch.equal(first(tokens), again(tokens))
    assert not torch.allclose(first(tokens), other(tokens))
    assert first(tokens).shape == ours(tokens).shape


def test_a_context_begins_with_the_first_token_alone_where_no_token_is_a_line_break(tmp_path: Path):
    save_model(tmp_path)
    assert pretrained.convert(config(tmp_path), VOCABULARY)[1]["prefix"] == [0, 3]
    assert pretrained.convert(config(tmp_path, context=63), ["<s>", "a"])[1]["prefix"] == [0]


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path):
    save_model(tmp_path / "whole")
    for bad, expected in [
        (
            config(tmp_path / "none"),
            "cannot read the model .*none: .*nothing is downloaded unless `model.download` is true",
        ),
        (config("package:no_such_package"), "package `no_such_package`, which carries the model, is not installed"),
        (
            config(tmp_path / "whole", context=64),
            "`model.context` must be at most 62, 2 less .*; not 64",
        ),
        (config(tmp_path / "whole", gguf_file="x.gguf"), "`model.gguf_file` must be a file in .*whole; not 'x.gguf'"),
    ]:
        with pytest.raises(ValueError, match=expected) as refusal:
            pretrained.convert(bad, VOCABULARY)
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="cannot read the model"):
        pretrained.tokenize(config(tmp_path / "whole"), ["a"])
    weights = tmp_path / "whole" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot read the model"):
        pretrained.convert(config(tmp_path / "whole"), VOCABULARY)
    with pytest.raises(ValueError, match="`name` must be a folder or a name, where source is hf; not None"):
        ModelConfig(Source.hf, None, None, False, 8)
