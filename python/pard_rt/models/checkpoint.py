"""From a Hugging Face directory or hub id to a module, its tokenizer and the facts about both."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from pard_rt.errors import InvalidArgumentError, ModelError, RuntimeMissingError, first_line
from pard_rt.models.find import display_name, locate
from pard_rt.pytorch.quantized import quantized_error, refuse_unknown_method
from pard_rt.pytorch.requirements import require_decoder
from pard_rt.pytorch.seam import Seam, TransformersSeam
from pard_rt.vocabulary import count_tokens, digest_vocabulary, special_token_ids

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "tekken.json")
_MASK_TOKEN_KEYS = ("pard_token", "ptd_token_id", "mask_token_id")


@dataclass(frozen=True)
class ModelFacts:
    """What decoding and export need to know of a model besides its weights."""

    name: str
    vocab_size: int  # width of a logits row
    num_tokens: int  # ids the tokenizer knows; rows behind it are padding
    vocabulary_id: str  # equal exactly where two tokenizers map tokens to the same ids; may be ""
    max_length: int  # most positions a sequence may have
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    mask_token_id: int | None  # the parallel draft's mask token


@dataclass(frozen=True)
class LoadedModel:
    """A decoder ready to run: its module, its tokenizer if any, and its facts."""

    module: Any
    config: Any  # of transformers; None where `pard_rt.wrap` made this of a module
    tokenizer: Any  # of transformers or tokenizers, or None
    facts: ModelFacts

    @property
    def seam(self) -> Seam:
        """How the module is run."""
        return TransformersSeam(self.module)


def load(
    source: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device = "cpu",
    mask_token_id: int | None = None,
    max_length: int | None = None,
    at_most: int | None = None,
    need_tokenizer: bool = True,
) -> LoadedModel:
    """Load a decoder-only language model.

    Parameters
    ----------
    source
        A directory in Hugging Face format, or a hub id.
    dtype
        Of the weights; ``"auto"`` keeps the checkpoint's.
    device
        Where the module is put.
    mask_token_id
        The parallel draft's mask token; overrides what the configuration says.
    max_length
        Most positions a sequence may have; by default and at most ``max_position_embeddings``.
    at_most
        Of a draft, the target's max_length: no sequence has more, whatever its own limit.
    need_tokenizer
        Whether a missing tokenizer is an error.

    Raises
    ------
    FolderError
        There is no such directory or model.
    ModelError
        The source is damaged, incomplete, or not a decoder.
    InvalidArgumentError
        An argument that does not fit the model, or no device of PyTorch's.
    RuntimeMissingError
        The device is a card, and PyTorch sees none.
    """
    require_device(device)
    folder = locate(source)
    name = str(folder)
    config = _load_config(name)
    require_decoder(name, config)
    refuse_unknown_method(name, config)
    check_weights(folder)
    module = _put(_load_module(name, config, dtype), name, device)
    tokenizer = load_tokenizer(name, needed=need_tokenizer)
    embedding_rows, vocab_size = _embedding_sizes(name, module)
    mask = read_mask_token(config, embedding_rows, mask_token_id)
    facts = facts_of(
        display_name(folder.absolute()),
        tokenizer,
        vocab_size=vocab_size,
        max_length=_max_length(config, max_length, at_most),
        bos_token_id=_first(
            getattr(config, "bos_token_id", None), getattr(tokenizer, "bos_token_id", None)
        ),
        eos_token_ids=_eos_token_ids(name, config, tokenizer),
        mask_token_id=mask,
    )
    return LoadedModel(module, module.config, tokenizer, facts)


def facts_of(
    name: str,
    tokenizer: Any,
    *,
    vocab_size: int,
    max_length: int,
    bos_token_id: int | None,
    eos_token_ids: tuple[int, ...],
    mask_token_id: int | None,
) -> ModelFacts:
    """Put a model's facts together with what its tokenizer says.

    Raises
    ------
    ModelError
        The tokenizer knows more tokens than there are logits.
    """
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    textless = set() if tokenizer is None else special_token_ids(tokenizer)
    textless |= set() if mask_token_id is None else {mask_token_id}
    facts = ModelFacts(
        name=name,
        vocab_size=vocab_size,
        num_tokens=count_tokens(vocabulary, mask_token_id) or vocab_size,
        vocabulary_id=digest_vocabulary(vocabulary, textless),
        max_length=max_length,
        bos_token_id=bos_token_id,
        eos_token_ids=eos_token_ids,
        mask_token_id=mask_token_id,
    )
    if facts.num_tokens > vocab_size:
        raise ModelError(
            f"The tokenizer of {name} knows more tokens than the model has logits",
            f"at most {vocab_size} tokens",
            str(facts.num_tokens),
            "Use the tokenizer the model was trained with.",
        )
    return facts


def refit(
    loaded: LoadedModel, *, max_length: int | None = None, mask_token_id: int | None = None
) -> LoadedModel:
    """Return a loaded model with a smaller max_length, or another mask token.

    Raises
    ------
    InvalidArgumentError
        One of them does not fit it.
    """
    facts = loaded.facts
    if max_length is not None and not 1 <= max_length <= facts.max_length:
        raise _unfit_length(facts.max_length, max_length)
    if mask_token_id is not None:
        read_mask_token(None, loaded.seam.num_embeddings, mask_token_id)
    facts = facts_of(
        facts.name,
        loaded.tokenizer,
        vocab_size=facts.vocab_size,
        max_length=facts.max_length if max_length is None else max_length,
        bos_token_id=facts.bos_token_id,
        eos_token_ids=facts.eos_token_ids,
        mask_token_id=facts.mask_token_id if mask_token_id is None else mask_token_id,
    )
    return replace(loaded, facts=facts)


def require_device(device: str | torch.device) -> None:
    """Refuse what `load` cannot put a module on; errors are those of `load`."""
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        kind = "none"
    if kind not in ("cpu", "cuda"):
        raise InvalidArgumentError(
            "Unknown device", "cpu, or cuda (AMD's cards too)", repr(device), "Choose a device."
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise RuntimeMissingError(
            "PyTorch sees no GPU",
            "a card, its driver, and a PyTorch built for it",
            f"PyTorch {torch.__version__}",
            "Install PyTorch for your card (pytorch.org), or take device='cpu'.",
        )


def _put(module: Any, name: str, device: str | torch.device) -> Any:
    try:
        return module.to(device)
    except torch.OutOfMemoryError as error:
        size = sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())
        raise ModelError(
            f"The weights of {name} do not fit on {device}",
            f"{size / 2**30:.1f} GiB of memory",
            first_line(error),
            "Free the card, or load a smaller or quantized model.",
        ) from error


def read_mask_token(config: Any, embedding_rows: int, explicit: int | None = None) -> int | None:
    """Find the parallel draft's mask token id; None for a model that is no parallel draft.

    An explicit id wins; then ``pard_token``, ``ptd_token_id``, ``mask_token_id`` and
    ``dflash_config.mask_token_id`` of the configuration, in this order.

    Raises
    ------
    ModelError
        The configuration's id is outside the embedding, or the draft is a PARD-2 one.
    InvalidArgumentError
        The explicit id is outside the embedding.
    """
    if str(getattr(config, "spd_type", "")).lower() == "pard2":
        raise ModelError(
            "A PARD-2 draft needs its projection of target states, which the module lacks",
            'spd_type "pard"',
            'spd_type "pard2"',
            "Use a PARD draft.",
        )
    where, found = "mask_token_id", explicit
    if explicit is None:
        dflash = getattr(config, "dflash_config", None) or {}
        entries = [(key, getattr(config, key, None)) for key in _MASK_TOKEN_KEYS]
        entries.append(("dflash_config.mask_token_id", dflash.get("mask_token_id")))
        where, found = next(((k, v) for k, v in entries if v is not None), ("", None))
    if found is not None and not 0 <= found < embedding_rows:
        raise (ModelError if explicit is None else InvalidArgumentError)(
            f"the mask token ({where}) is outside the draft's embedding",
            f"an id in 0..{embedding_rows - 1}",
            str(found),
            "pass the mask_token_id the draft was trained with",
        )
    return found


def check_weights(folder: Path) -> None:
    """Refuse a folder whose weights are missing, incomplete or truncated.

    Raises
    ------
    ModelError
        Names the file at fault.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / shard for shard in _shards(index)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(
                f"{folder} lacks part of its weights",
                f"the {len(files)} files its index names",
                f"missing: {', '.join(missing)}",
                "Download the model again.",
            )
    else:
        files = sorted(folder.glob("*.safetensors"))
        if not files and not any(folder.glob("pytorch_model*.bin")):
            raise ModelError(
                f"{folder} has no weights",
                "model.safetensors, or shards with an index",
                "none",
                "Download the whole model, not only its configuration.",
            )
    for file in files:
        try:
            with safe_open(str(file), framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"The weights file {file} is damaged",
                "a complete safetensors file",
                str(error),
                "Download it again.",
            ) from error


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"The index of the weights {index} is damaged",
            "a JSON object whose weight_map names the file of every tensor",
            first_line(error),
            "Download it again.",
        ) from error


def _load_config(name: str) -> Any:
    try:
        return AutoConfig.from_pretrained(name)
    except Exception as error:  # each wrong field fails in its own way
        raise ModelError(
            f"The configuration of '{name}' cannot be read",
            "a config.json of an architecture this transformers knows",
            first_line(error),
            "Check the folder or hub id; a new architecture may need a newer transformers.",
        ) from error


def _load_module(name: str, config: Any, dtype: torch.dtype | str) -> Any:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True
        )
        module, report = loaded
    except MemoryError:
        raise
    except Exception as error:  # so does each size that fits nothing
        raise quantized_error(name, config, error) or ModelError(
            f"The weights of '{name}' cannot be loaded",
            "a configuration of a decoder, and weights that fit it",
            first_line(error),
            "Download the model again.",
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{name} lacks {len(missing)} of its weights",
            "a weight for every parameter",
            f"missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}",
            "Download the model again.",
        )
    return module.eval().requires_grad_(False)


def _embedding_sizes(name: str, module: Any) -> tuple[int, int]:
    try:
        embeddings = module.get_input_embeddings(), module.get_output_embeddings()
        rows, vocab_size = (int(each.weight.shape[0]) for each in embeddings)
    except (AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"{name} keeps its embeddings where they cannot be found",
            "an embedding of tokens, and an LM head that is one matrix",
            first_line(error),
            "Use another architecture.",
        ) from error
    return rows, vocab_size


def load_tokenizer(name: str, *, needed: bool = True) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a folder.

    Where it is not `needed`, None stands for one that is missing or wants another package; a
    damaged tokenizer.json is an error all the same.

    Raises
    ------
    ModelError
        There is none, or it cannot be read.
    """
    has_file = any(any(Path(name).glob(file)) for file in _TOKENIZER_FILES)
    try:
        if not has_file:
            raise OSError("none")  # transformers would make up an empty one for some architectures
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # the tokenizers library raises Exception itself
        if not needed and not _is_damaged(Path(name) / "tokenizer.json"):
            return None
        raise ModelError(
            f"The tokenizer of {name} cannot be read" if has_file else f"{name} has no tokenizer",
            "tokenizer.json beside the weights",
            first_line(error),
            "Install what it asks for, or save the tokenizer as a tokenizer.json."
            if has_file
            else "Copy the tokenizer's files into the folder.",
        ) from error
    return tokenizer


def _is_damaged(file: Path) -> bool:
    try:
        Tokenizer.from_file(str(file))
    except Exception:  # tokenizers raises bare Exception
        return file.is_file()
    return False


def _max_length(config: Any, asked: int | None, at_most: int | None) -> int:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    length = asked if asked is not None else limit
    if at_most is not None:
        length = at_most if length is None else min(length, at_most)
    if length is None or length < 1 or (limit is not None and length > limit):
        raise _unfit_length(limit, asked)
    return int(length)


def _unfit_length(limit: int | None, asked: int | None) -> InvalidArgumentError:
    return InvalidArgumentError(
        "Max_length does not fit the model",
        f"1..{limit}" if limit else "a positive number: the configuration has no limit",
        str(asked),
        "Choose a length the model was trained for.",
    )


def _eos_token_ids(name: str, config: Any, tokenizer: Any) -> tuple[int, ...]:
    try:
        generation = GenerationConfig.from_pretrained(name).eos_token_id
    except OSError:
        generation = None
    configured = getattr(config, "eos_token_id", None)
    ids = _first(generation, configured, getattr(tokenizer, "eos_token_id", None))
    several = ids if isinstance(ids, (list, tuple)) else () if ids is None else (ids,)
    return tuple(int(i) for i in several)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
