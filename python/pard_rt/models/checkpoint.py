"""From a Hugging Face directory or hub id, or from a module of transformers, to a `LoadedModel`."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from pard_rt.errors import (
    InvalidArgumentError,
    ModelError,
    Notice,
    RuntimeMissingError,
    first_line,
    notify,
)
from pard_rt.models.facts import (
    ModelFacts,
    facts_of,
    read_eos_tokens,
    read_generation_config,
    read_mask_token,
    require_mask_token,
)
from pard_rt.models.fields import Fields
from pard_rt.models.files import check_weights, refuse_adapter, remote_code_error
from pard_rt.models.find import display_name, folder_size, locate, parts_of
from pard_rt.models.options import OpenOptions
from pard_rt.pytorch.quantized import quantized_error, refuse_unknown_method
from pard_rt.pytorch.requirements import is_causal_lm, require_decoder
from pard_rt.pytorch.seam import Seam, TransformersSeam

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "tekken.json")


@dataclass(frozen=True)
class LoadedModel:
    """A decoder ready to run: its module, its tokenizer if any, and its facts."""

    module: Any
    config: Any  # of transformers; None where `pard_rt.wrap` made this of a module
    tokenizer: Any  # of transformers or tokenizers, or None
    facts: ModelFacts

    def tokens_of(self, columns: Tensor) -> Tensor:
        """Return the tokens that columns of the logits are of."""
        head = self.facts.head_tokens
        return torch.tensor(head, device=columns.device)[columns] if head else columns

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
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    need_tokenizer: bool = True,
) -> LoadedModel:
    """Load a decoder-only language model.

    Parameters
    ----------
    source
        A directory in Hugging Face format, or a hub id.
    dtype, device, mask_token_id, max_length, revision, token, cache_dir, trust_remote_code
        See `pard_rt.OpenOptions`.
    need_tokenizer
        Whether a tokenizer that is missing, or wants another package, is an error.

    Raises
    ------
    FolderError
        There is no such directory or model.
    ModelError
        The source is damaged, incomplete, or not a decoder.
    InvalidArgumentError
        An argument does not fit the model.
    RuntimeMissingError
        The device is a card, and PyTorch sees none.
    """
    options = OpenOptions(
        dtype=dtype,
        device=device,
        mask_token_id=mask_token_id,
        max_length=max_length,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        trust_remote_code=trust_remote_code,
    )
    require_device(device)
    return load_checkpoint(locate(source, options), options, need_tokenizer=need_tokenizer)


def load_checkpoint(
    folder: Path, options: OpenOptions, *, need_tokenizer: bool = True
) -> LoadedModel:
    """Load a Hugging Face directory or a GGUF file; parameters and errors are those of `load`."""
    require_device(options.device)
    if folder.is_file():
        from pard_rt.models.gguf import load_gguf

        loaded = load_gguf(folder, options)
        parameters = list(loaded.module.parameters())
        taken = sum(each.numel() * each.element_size() for each in parameters) / 1e9
        stored = sum(folder_size(part) for part in parts_of(folder)) / 1e9
        notify(
            Notice(
                f"'{folder}' is dequantized, since PyTorch computes with floats",
                f"Its weights take {taken:.3g} GB, and {stored:.3g} GB in the file.",
            )
        )
        return replace(loaded, module=_put(loaded.module, str(folder), options.device))
    refuse_adapter(folder)
    name = str(folder)
    fields = Fields.read(folder / "config.json")
    generation = read_generation_config(folder)
    read_mask_token(fields, 2**31)  # wrong values are told before weights are read
    config = _load_config(name, options)
    remote = remote_code_error(folder / "config.json")
    if remote is not None and not options.trust_remote_code and not is_causal_lm(config):
        raise remote
    require_decoder(name, config, is_foreign=remote is not None and options.trust_remote_code)
    refuse_unknown_method(name, config)
    check_weights(folder)
    module = _put(_load_module(name, config, options), name, options.device)
    tokenizer = load_tokenizer(
        name, needed=need_tokenizer, trust_remote_code=options.trust_remote_code
    )
    return _loaded(module, tokenizer, display_name(folder.absolute()), generation, options)


def loaded_from(
    module: Any, options: OpenOptions, name: str, *, tokenizer: Any = None
) -> LoadedModel:
    """Take a ``PreTrainedModel`` as it is, with a tokenizer or `options.tokenizer`, if any.

    Raises
    ------
    ModelError, InvalidArgumentError
        As from `load`.
    """
    config: Any = module.config
    require_decoder(name, config, is_foreign=True)
    generation = generation_config_of(module, name)
    return _loaded(module, tokenizer or options.tokenizer, name, generation, options)


def generation_config_of(module: Any, name: str) -> Fields | None:
    """Return the generation config of a module in memory; None where it has none."""
    config = getattr(module, "generation_config", None)
    return None if config is None else Fields.of_config(config, f"{name} for generation")


def _loaded(
    module: Any, tokenizer: Any, name: str, generation: Fields | None, options: OpenOptions
) -> LoadedModel:
    config = module.config
    fields = Fields.of_config(config, name)
    embedding_rows, vocab_size = _embedding_sizes(name, module)
    mask = (
        read_mask_token(fields, embedding_rows)
        if options.mask_token_id is None
        else require_mask_token(options.mask_token_id, embedding_rows)
    )
    bos = fields.token("bos_token_id", embedding_rows)
    own_eos = getattr(tokenizer, "eos_token_id", None)
    facts = facts_of(
        name,
        tokenizer,
        vocab_size=vocab_size,
        max_length=_max_length(name, config, options),
        bos_token_id=getattr(tokenizer, "bos_token_id", None) if bos is None else bos,
        eos_token_ids=read_eos_tokens(fields, generation, vocab_size, own_eos),
        mask_token_id=mask,
    )
    return LoadedModel(module, config, tokenizer, facts)


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
        require_mask_token(mask_token_id, loaded.seam.num_embeddings)
    facts = replace(
        facts,
        max_length=facts.max_length if max_length is None else max_length,
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
            "PyTorch does not run models on this device",
            "cpu, or cuda (AMD's cards too)",
            repr(device),
            "Choose one of them. Other devices are ONNX Runtime's: write a folder for it with "
            "pard-rt export.",
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


def _load_config(name: str, options: OpenOptions) -> Any:
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=options.trust_remote_code)
    except Exception as error:  # each wrong field fails in its own way
        remote = (
            None if options.trust_remote_code else remote_code_error(Path(name) / "config.json")
        )
        raise remote or ModelError(
            f"The configuration of '{name}' cannot be read",
            "a config.json of an architecture this transformers knows",
            first_line(error),
            "Check the folder or hub id; a new architecture may need a newer transformers.",
        ) from error


def _load_module(name: str, config: Any, options: OpenOptions) -> Any:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=options.dtype,
            output_loading_info=True,
            trust_remote_code=options.trust_remote_code,
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


def load_tokenizer(
    name: str, *, needed: bool = True, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | None:
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
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # the tokenizers library raises Exception itself
        remote = (
            None if trust_remote_code else remote_code_error(Path(name) / "tokenizer_config.json")
        )
        if remote is not None:
            raise remote from error
        if not needed and not _is_damaged(Path(name) / "tokenizer.json"):
            return None
        lacking = _lacks_sentencepiece(Path(name))
        raise ModelError(
            f"The tokenizer of {name} cannot be read" if has_file else f"{name} has no tokenizer",
            "tokenizer.json beside the weights",
            lacking or first_line(error),
            "Install the package it asks for, or save the tokenizer as a tokenizer.json."
            if has_file
            else "Copy the tokenizer's files into the folder.",
        ) from error
    return tokenizer


def _lacks_sentencepiece(folder: Path) -> str:
    """Say what is missing where transformers, failing to convert, asks for tiktoken; or nothing."""
    models = [file.name for file in folder.glob("*.model")]
    if not models or (folder / "tokenizer.json").exists() or find_spec("sentencepiece"):
        return ""
    return f"{models[0]}, which transformers reads with the package sentencepiece"


def _is_damaged(file: Path) -> bool:
    try:
        Tokenizer.from_file(str(file))
    except Exception:  # tokenizers raises bare Exception
        return file.is_file()
    return False


def _max_length(name: str, config: Any, options: OpenOptions) -> int:
    text = Fields.of_config(config.get_text_config(), name)
    limit = text.integer("max_position_embeddings", 1, 2**31 - 1)
    asked = options.max_length
    length = limit if asked is None else asked
    if not options.is_target and length is not None and limit is not None:
        length = min(length, limit)  # a draft's own limit may be below its target's
    if length is None or (limit is not None and length > limit):
        raise _unfit_length(limit, asked)
    return length


def _unfit_length(limit: int | None, asked: int | None) -> InvalidArgumentError:
    return InvalidArgumentError(
        "max_length does not fit the model",
        f"1..{limit}" if limit else "a positive number: the configuration has no limit",
        str(asked),
        "Choose a length the model was trained for.",
    )


def hush_transformers() -> None:
    """Keep transformers' own progress bars out of the output."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
