"""Language models of Hugging Face's format in the place of our own transformer: what transformers knows as causal.

What is read is a folder in which `save_pretrained` put a model, or one that holds a GGUF file, or, if that is asked
for, a name on the Hub. It is converted once, to float32; later stages build the model from that alone.
"""

import contextlib
import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from hsae.causal_lm import CausalLM, ModelConfig
from hsae.config import check
from hsae.files import understanding
from hsae.streams import Stream

if TYPE_CHECKING:  # importing it takes two seconds, for which our own transformer has no use
    from transformers import PreTrainedModel

PACKAGE = "package:"
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
LINE_BREAK = "\n"
CLOSE = 1e-3  # logits of a model that is resumed in its middle, against those of the whole one


class _StreamFoundError(Exception):
    """Ends a forward pass that has come as far as it is wanted."""


class PretrainedLM(CausalLM):
    """A causal language model of transformers, read in contexts of `context` tokens.

    Every context is preceded by the tokens `prefix`, of which the caller never sees anything: the first positions of
    such models are attention sinks (Xiao et al. 2023, arXiv 2309.17453), a hundred times as large as all others, that
    are neither to be learnt nor to be patched. Their streams depend on nothing that follows.
    """

    def __init__(self, model: "PreTrainedModel", context: int, prefix: list[int]):
        blocks = find_blocks(model)
        super().__init__(len(blocks), context, model.config.get_text_config().vocab_size)
        self.model = model
        self._blocks = list(blocks)  # no module, which would list the weights twice
        self.prefix = prefix
        self._sinks: dict[int, Tensor] = {}

    def residual(self, tokens: Int[Tensor, "batch pos"], layer: int) -> Float[Tensor, "batch pos d_model"]:
        """Residual stream after block `layer`, the ones above not being run."""
        return self._stream(self.begun(tokens), layer)[:, len(self.prefix) :]

    def logits(self, residual: Float[Tensor, "batch pos d_model"], layer: int) -> Float[Tensor, "batch pos n_vocab"]:
        """Next-token logits, given the residual stream after block `layer`, the ones below not being run."""
        return self._resume(residual, layer, 0)[:, len(self.prefix) :]

    def last_logits(self, residual: Float[Tensor, "batch pos d_model"], layer: int) -> Float[Tensor, "batch n_vocab"]:
        """The same after the last token alone."""
        return self._resume(residual, layer, 1)[:, 0]

    def begun(self, tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch prefix_and_pos"]:
        """What the model itself reads for some contexts."""
        prefix = torch.tensor(self.prefix, device=tokens.device)
        return torch.cat([prefix.expand(len(tokens), -1), tokens], 1)

    def _stream(self, tokens: Int[Tensor, "batch pos"], layer: int) -> Float[Tensor, "batch pos d_model"]:
        found: list[Tensor] = []

        def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any) -> None:
            stream = output[0] if output else (*args, *kwargs.values())[0]
            found.append(stream[0] if isinstance(stream, tuple) else stream)
            raise _StreamFoundError

        last = layer == self.n_layer - 1
        block = self._blocks[layer if last else layer + 1]
        hook = (block.register_forward_hook if last else block.register_forward_pre_hook)(take, with_kwargs=True)
        try:
            self.model.base_model(input_ids=tokens, use_cache=False)
        except _StreamFoundError:
            pass
        finally:
            hook.remove()
        return found[0]

    def _resume(self, residual: Tensor, layer: int, n_last: int) -> Float[Tensor, "batch kept n_vocab"]:
        """Logits of the last positions; 0: of all, the prefix among them."""
        if layer not in self._sinks:
            with torch.no_grad():
                nothing = torch.empty(1, 0, dtype=torch.long, device=residual.device)
                self._sinks[layer] = self._stream(self.begun(nothing), layer)
        stream = torch.cat([self._sinks[layer].expand(len(residual), -1, -1), residual], 1)
        with self._resumed(stream, layer):
            return self.model(inputs_embeds=stream, use_cache=False, logits_to_keep=n_last).logits

    @contextmanager
    def _resumed(self, stream: Tensor, layer: int) -> Iterator[None]:
        """Have the blocks up to `layer` hand on `stream`, whatever they get, at no cost."""

        def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            return ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})

        below = self._blocks[: layer + 1]
        for block in below:
            block.forward = lambda *_, **__: stream
        # Embeddings may be scaled, or positions added to them: the first block gets the stream itself.
        hook = None if below else self._blocks[0].register_forward_pre_hook(replace, with_kwargs=True)
        try:
            yield
        finally:
            for block in below:
                del block.forward
            if hook is not None:
                hook.remove()


def find_blocks(model: "PreTrainedModel") -> nn.ModuleList:
    """The model's transformer blocks. Raises ValueError for an architecture that has not one list of them."""
    n = model.config.get_text_config().num_hidden_layers
    found = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == n]
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} is not supported: it has {len(found)} lists of {n} blocks, not one.")
    return found[0]


def convert(config: ModelConfig, vocabulary: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The model as float32 tensors and the header from which `load` makes it again.

    Its prefix is the token that begins a text and, where the vocabulary has one, a line break. Behind the first alone,
    SmolLM2 makes a sink of the first token of 3% of contexts too, which then have most of all variance; behind both,
    of none (LOG.md). Raises ValueError, in one line, for a model that cannot be found or read, whose context is shorter
    than wanted, or that cannot be resumed in its middle.
    """
    from transformers import AutoModelForCausalLM

    with _reading(config) as (place, options):
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
    text = model.config.get_text_config()
    first = next((i for i in (text.bos_token_id, text.eos_token_id) if isinstance(i, int)), None)
    if first is None:
        raise ValueError(f"{config.name} is not supported: it has no token that begins a text.")
    prefix = [first, *([vocabulary.index(LINE_BREAK)] if LINE_BREAK in vocabulary else [])]
    longest = getattr(text, "max_position_embeddings", config.context + len(prefix)) - len(prefix)
    allowed = f"at most {longest}, {len(prefix)} less than the model reads"
    check("model.context", config.context, allowed, config.context <= longest)
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)  # the tensors are not quantized any more
    tied = {name for name, _ in model.named_parameters()}  # each once, whatever shares it
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name in tied}
    header = {"huggingface": settings, "context": config.context, "prefix": prefix}
    _check_resumable(load(tensors, header))
    return tensors, header


def load(tensors: dict[str, Tensor], header: dict[str, Any]) -> PretrainedLM:
    """The model that `convert` made these of, ready for inference. Raises ValueError if they are something else's."""
    from transformers import AutoConfig, AutoModelForCausalLM

    _be_quiet()
    with understanding("the language model"):
        settings = AutoConfig.for_model(**header["huggingface"])
        kind: Any = AutoModelForCausalLM._model_mapping[type(settings)]
        model = kind.from_pretrained(None, config=settings, state_dict=tensors, dtype=torch.float32)
        return PretrainedLM(model, header["context"], header["prefix"]).eval().requires_grad_(False)


def untrained(header: dict[str, Any], stream: Stream) -> PretrainedLM:
    """A model of the architecture of a converted one, randomly initialised, ready for inference."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with stream.seeding():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**header["huggingface"]), dtype=torch.float32)
    return PretrainedLM(model, header["context"], header["prefix"]).eval().requires_grad_(False)


class Tokens(NamedTuple):
    """Documents as tokens, one after the other."""

    tokens: Int[Tensor, " token"]
    starts: list[int]
    """Where each document begins."""
    vocabulary: list[str]
    """What each token stands for; U+FFFD for one that is not a whole character."""
    special: list[int]
    """Tokens of the vocabulary that stand for no text."""


def tokenize(config: ModelConfig, documents: list[str]) -> Tokens:
    """Tokens of some documents, each by itself, so that no token lies in two.

    A document that spells a special token out, `<|endoftext|>` say, gets that token: it is masked
    (`activations.Mask`). Raises ValueError for a tokenizer that cannot be found.
    """
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

    with _reading(config) as (place, options):
        tokenizer = AutoTokenizer.from_pretrained(place, use_fast=True, **options)
        n_vocab = AutoConfig.from_pretrained(place, **options).get_text_config().vocab_size
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"the tokenizer of {config.name} is not supported: it is not one of the library tokenizers.")
    found = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in documents]
    # Alone, a token that begins a word loses its blank: it is seen after another one.
    before = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    pairs = [[before, i] for i in range(len(tokenizer))]
    alone = str(tokenizer.decode([before]))
    pieces = [piece.removeprefix(alone) for piece in tokenizer.batch_decode(pairs, clean_up_tokenization_spaces=False)]
    pieces += [UNKNOWN] * (n_vocab - len(pieces))  # logits that no token has
    marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = sorted(marked | set(tokenizer.all_special_ids))
    starts = [0, *accumulate(map(len, found))][:-1]
    return Tokens(torch.tensor(list(chain(*found)), dtype=torch.int32), starts, pieces, special)


def _be_quiet() -> None:
    """Warnings and progress bars of transformers say nothing that matters here."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def _reading(config: ModelConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where the model is, and with which options it is read; what goes wrong meanwhile becomes a ValueError."""
    _be_quiet()
    place = str(config.name)
    if place.startswith(PACKAGE):
        package = place.removeprefix(PACKAGE)
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"package `{package}`, which carries the model, is not installed (README says how).")
        place = str(spec.submodule_search_locations[0])
    options: dict[str, Any] = {} if config.gguf_file is None else {"gguf_file": config.gguf_file}
    if config.gguf_file is not None:
        file = Path(place) / config.gguf_file
        check("model.gguf_file", config.gguf_file, f"a file in {place}", file.is_file() or not Path(place).is_dir())
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # gguf has a progress bar of its own
            yield place, options | {"local_files_only": not config.download}
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        hint = "" if config.download else "; nothing is downloaded unless `model.download` is true"
        raise ValueError(f"cannot read the model {config.name}: {' '.join(str(error).split())[:200]}{hint}") from error


@torch.no_grad()
def _check_resumable(model: PretrainedLM) -> None:
    """Raise ValueError if the stream that is read in the middle is not what the blocks above go on from."""
    tokens = torch.arange(2 * min(model.context, 8)).view(2, -1) % model.n_vocab
    whole = model.model(input_ids=model.begun(tokens), use_cache=False).logits[:, len(model.prefix) :]
    for layer in {-1, model.n_layer // 2, model.n_layer - 1}:
        error = (model.logits(model.residual(tokens, layer), layer) - whole).abs().max() / whole.abs().max()
        if not error < CLOSE:
            raise ValueError(f"{type(model.model).__name__} is not supported: resumed after block {layer} it differs.")
