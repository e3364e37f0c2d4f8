"""GGUF files: what transformers makes of them."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pard_rt.errors import Error, ModelError, RuntimeMissingError, first_line
from pard_rt.models.checkpoint import LoadedModel, loaded_from
from pard_rt.models.find import parts_of
from pard_rt.models.gguf_text import read_tokenizer
from pard_rt.models.options import OpenOptions

if TYPE_CHECKING:
    from gguf import GGUFReader

ROPE_FACTORS = "rope_freqs.weight"
_HEAD = "lm_head.weight"
_PARSING = threading.RLock()  # what is patched is patched for all threads
# Gemma's largest models scale their queries by what GGUF files leave out: layers of a model.
_OWN_SCALE = {("gemma2", 46), ("gemma3", 62)}


def open_gguf(file: Path) -> GGUFReader:
    """Open a GGUF file; its tensors are mapped, not read.

    Raises
    ------
    ModelError
        The file is not a GGUF file, or is damaged.
    RuntimeMissingError
        The packages that read it are missing.
    """
    absent = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if absent:
        raise RuntimeMissingError(
            "GGUF files are read with packages that are not installed",
            "gguf and accelerate",
            f"no {' and no '.join(absent)}",
            "Run: pip install 'pard-rt[export]'.",
        )
    with reading(file):
        reader = _reader(file)
        count, place = number(reader, "split.count", 1), number(reader, "split.no", 0)
    if count <= 1:  # 0 where llama.cpp has merged parts
        return reader
    if place != 0:
        raise ModelError(
            f"'{file}' is part {place + 1} of a model of {count} files",
            "the first of them, which says what the others hold",
            "a later one",
            "Name the first one, and leave the others beside it.",
        )
    parts = parts_of(file)
    missing = [part for part in parts if not part.is_file()]
    if len(parts) != count or missing:
        raise ModelError(
            f"'{file}' is the first of {count} files, and others are missing",
            "all of them side by side, under the names they were published with",
            f"no '{missing[0].name}'" if missing else f"names of {len(parts)}",
            "Download the others into the same folder.",
        )
    for part in parts[1:]:
        with reading(part):
            reader.tensors.extend(_reader(part).tensors)
    return reader


def _reader(file: Path) -> GGUFReader:
    from gguf import GGUFReader

    class Reader(GGUFReader):
        """Checks the end of the file, which gguf does not, and reads fields ten times as fast.

        Sizes in a damaged file may be anything; slicing a ``memmap`` is slow.
        """

        def _get(
            self, offset: int, dtype: Any, count: int = 1, override_order: Any = None
        ) -> npt.NDArray[Any]:
            count, plain = int(count), self.data.view(np.ndarray)
            if offset + np.dtype(dtype).itemsize * count > len(plain):
                raise ValueError("it ends before what it says that it holds")
            found: npt.NDArray[Any] = np.frombuffer(plain, dtype, count, offset)
            order = self.byte_order if override_order is None else override_order
            return found if order in "I=" else found.view(found.dtype.newbyteorder(order))

    reader = Reader(file)
    if reader.byte_order == "S":
        raise ValueError("its numbers are big-endian")
    return reader


def number(reader: GGUFReader, key: str, otherwise: int) -> int:
    """Return a field of a file that is a number."""
    field = reader.get_field(key)
    return otherwise if field is None else int(field.contents())


def text(reader: GGUFReader, key: str) -> str:
    """Return a field of a file that is a string; empty where there is none."""
    field = reader.get_field(key)
    return "" if field is None else str(field.contents())


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn what goes wrong inside the block into an error about the file."""
    try:
        yield
    except (MemoryError, Error):
        raise
    except Exception as error:  # every malformed field fails in its own way
        raise ModelError(
            f"'{file}' cannot be read",
            "a GGUF file of a decoder whose architecture transformers reads",
            first_line(error),
            "Download the file again; a new architecture may need a newer transformers.",
        ) from error


@contextmanager
def parsed_once(reader: GGUFReader) -> Iterator[None]:
    """Inside the block, let transformers take this reader where it would parse the file again."""
    with _PARSING, mock.patch("gguf.GGUFReader", return_value=reader):
        yield


def config_and_tokenizer(file: Path, reader: GGUFReader) -> tuple[Any, Any]:
    """Return what transformers makes of the fields of a file.

    Raises
    ------
    ModelError
        It does not know the architecture, or fields are damaged.

    Warns
    -----
    Notice
        How the file's text is split into tokens is not known.
    """
    with reading(file), parsed_once(reader), _alone(file) as folder:
        architecture = text(reader, "general.architecture")
        config: Any = AutoConfig.from_pretrained(folder, gguf_file=file.name)
        head = config.hidden_size // config.num_attention_heads
        head = number(reader, f"{architecture}.attention.key_length", head)
        if getattr(config, "head_dim", head) != head:
            config.head_dim = head  # transformers takes other fields for it
        unread = _rope_unread(reader, architecture, head)
        if unread:
            raise ModelError(
                f"'{file}' turns positions in a way that transformers does not read from a GGUF",
                "rotary embeddings of whole heads, not scaled",
                unread,
                "Export the checkpoint that the file was made from.",
            )
        if (architecture, config.num_hidden_layers) in _OWN_SCALE:
            config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
        window = number(reader, f"{architecture}.attention.sliding_window", 0)
        if architecture == "phi3" and window:
            config.sliding_window = window
        kind, split = (text(reader, f"tokenizer.ggml.{key}") for key in ("model", "pre"))
        tokenizer = read_tokenizer(folder, file, kind, split)
    return config, tokenizer


def _rope_unread(reader: GGUFReader, architecture: str, head: int) -> str:
    """Return what of a file's rotary embedding transformers passes over; empty: nothing."""
    scaling = reader.get_field(f"{architecture}.rope.scaling.type")
    if scaling is not None and scaling.contents() != "none":
        return str(scaling.contents())
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        factor = reader.get_field(f"{architecture}.{key}")
        if factor is not None and float(factor.contents()) not in (0.0, 1.0):
            return f"{key} {float(factor.contents()):g}"
    factors = [each.name for each in reader.tensors if each.name.startswith("rope_factors")]
    if factors:
        return factors[0]
    turned = number(reader, f"{architecture}.rope.dimension_count", head)
    return "" if turned == head else f"{turned} of {head} dimensions of a head"


@contextmanager
def _alone(file: Path) -> Iterator[str]:
    """Give a folder that holds nothing but the file: others beside it would count for more."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, file.name).symlink_to(file.absolute())
        yield folder


def load_gguf(file: Path, options: OpenOptions) -> LoadedModel:
    """Load a GGUF file as a module; its weights are dequantized.

    Parameters
    ----------
    file
        The file.
    options
        `dtype` of the weights; `max_length` and `mask_token_id`.

    Raises
    ------
    ModelError
        The file is damaged, or of an architecture that transformers does not read.
    RuntimeMissingError
        The packages that read it are missing.
    """
    reader = open_gguf(file)
    config, tokenizer = config_and_tokenizer(file, reader)
    dtype = torch.float32 if options.dtype == "auto" else options.dtype
    with reading(file), parsed_once(reader), _alone(file) as folder:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, gguf_file=file.name
        )
    module, report = loaded
    require_all(file, set(report["missing_keys"]) - {_HEAD})
    if _HEAD in report["missing_keys"]:  # the tensors say that it is tied, whatever the file does
        module.get_output_embeddings().weight = module.get_input_embeddings().weight
    scale_rope(module, reader)
    # Its weights are floats now: it may be trained and saved, which transformers refuses otherwise.
    module.is_quantized, module.hf_quantizer = False, None
    del module.config.quantization_config
    module = module.eval().requires_grad_(False)
    return loaded_from(module, options, file.stem, tokenizer=tokenizer)


def scale_rope(module: Any, reader: GGUFReader) -> None:
    """Divide rotary frequencies as Llama 3.1's files say, which transformers passes over."""
    factors = [tensor for tensor in reader.tensors if tensor.name == ROPE_FACTORS]
    if factors:
        frequencies = module.base_model.rotary_emb.inv_freq
        frequencies /= torch.from_numpy(np.array(factors[0].data, dtype=np.float32))


def require_all(file: Path, missing: set[str]) -> None:
    """Refuse a file that lacks weights."""
    if missing:
        raise ModelError(
            f"'{file}' lacks {len(missing)} of the model's weights",
            "a weight for every parameter",
            f"missing: {', '.join(sorted(missing)[:3])}{', ...' if len(missing) > 3 else ''}",
            "Download the file again.",
        )
