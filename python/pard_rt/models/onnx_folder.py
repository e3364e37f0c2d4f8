"""Opening an ONNX folder (docs/onnx-folder.md)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pard_rt._core import OnnxModel, read_folder
from pard_rt.chat import ChatTemplate
from pard_rt.code_objects import code_objects, driver_of
from pard_rt.errors import InvalidArgumentError, ModelError, RuntimeMissingError, fall_back
from pard_rt.models.facts import read_generation_config
from pard_rt.models.opened import OpenedModel
from pard_rt.models.options import OpenOptions
from pard_rt.text import TokenText
from pard_rt.vocabulary import token_bytes_of_folder


def open_onnx_folder(path: Path, options: OpenOptions) -> OpenedModel:
    """Open an ONNX folder without trying it; errors are those of `open_model`."""
    if options.dtype != "auto":
        raise InvalidArgumentError(
            f"'{path}' is an ONNX folder, whose types were chosen at its export",
            "no dtype",
            repr(options.dtype),
            "Leave dtype out, or export the model again with other --weights.",
        )
    contract = read_folder(path)
    max_length = options.max_length
    num_tokens = contract.num_tokens or contract.vocab_size
    text: Callable[[], TokenText] = partial(TokenText.of_folder, path, num_tokens)
    if options.is_target:
        # Opening a session leaves Python to others: the tokenizer is read meanwhile.
        text = ThreadPoolExecutor(1).submit(text).result
    elif max_length is not None:
        max_length = min(max_length, contract.max_length)
    card = options.device_index
    model = OnnxModel(
        path,
        provider=options.device_kind,
        provider_options={} if card is None else {"device_id": str(card)},
        threads=options.threads,
        exact=options.is_target,
        is_target=options.is_target,
        max_length=max_length,
        token_bytes=token_bytes_of_folder(path),
        probe=False,
    )
    if options.device_kind != "cpu":
        _choose_on_device(model)
    mask = contract.mask_token_id if options.mask_token_id is None else options.mask_token_id
    facts = ["ONNX folder", contract.form, contract.weights or "weights not said"]
    facts.append(str(options.device))
    if mask is not None:
        facts.append(f"mask token {mask}")
    return OpenedModel(
        source=str(path),
        description=", ".join(facts),
        model=model,
        info=model.info(),
        mask_token_id=mask,
        eos_token_ids=tuple(contract.eos_token_ids),
        probe=model.probe,
        text=text,
        has_tokenizer=(path / "tokenizer.json").is_file(),
        chat_template=partial(ChatTemplate.of_folder, path),
        generation=read_generation_config(path),
    )


def _choose_on_device(model: OnnxModel) -> None:
    try:
        model.choose_on_device(code_objects(driver_of(model.provider)))
    except (RuntimeMissingError, ModelError) as error:
        instead = "Tokens are chosen on the host: logits are copied there, slower"
        fall_back(instead, error)
