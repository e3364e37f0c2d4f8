"""`pard-rt info`: what is installed, which providers work, and what folders are."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pard_rt._core import onnxruntime_providers, read_folder
from pard_rt.cli.output import format_bytes, paint, print_error, print_field
from pard_rt.cli.providers import PROVIDERS, Trial, try_provider
from pard_rt.errors import Error, FolderError, RuntimeMissingError, requiring
from pard_rt.migraphx import describe
from pard_rt.models.converted import conversion_of
from pard_rt.models.facts import read_mask_token
from pard_rt.models.fields import Fields, read_json
from pard_rt.models.files import check_weights, refuse_adapter
from pard_rt.models.find import folder_size, locate, parts_of
from pard_rt.models.open import GGUF, ONNX_FOLDER, format_of
from pard_rt.progress import progress

_PACKAGES = (("torch", "torch"), ("transformers", "torch"), ("onnx", "export"))


def run_info(paths: Sequence[str]) -> int:
    """Print everything; 2 where a path is no model."""
    _print_installation()
    status = 0
    for source in paths:
        print()
        try:
            path = locate(source)
            kind = format_of(path)
            if kind is ONNX_FOLDER:
                _print_onnx_folder(path)
            elif kind is GGUF:
                _print_gguf(path)
            else:
                _print_hugging_face(path)
        except Error as error:
            print_error(error)
            status = 2
    return status


def _print_installation() -> None:
    print_field("pard-rt", version("pard-rt"))
    print_field("python", platform.python_version())
    try:
        path, runtime, _ = onnxruntime_providers()
    except RuntimeMissingError as error:
        print_field("onnxruntime", f"not installed\n{error.remedy}")
    else:
        print_field("onnxruntime", f"{runtime}  {path}")
        for name in PROVIDERS:
            with progress(f"trying the provider {name}"):
                trial = try_provider(name)
            print_field(name, _describe(trial, path), indent=2)
    for package, extra in _PACKAGES:
        try:
            print_field(package, version(package))
        except PackageNotFoundError:
            print_field(package, f"not installed: pip install 'pard-rt[{extra}]'")


def _describe(trial: Trial, usual_path: str) -> str:
    if not trial.works:
        return trial.text
    elsewhere = "" if trial.text == usual_path else f"  {trial.version}  {trial.text}"
    return paint("works", "ok") + elsewhere


def _print_onnx_folder(path: Path) -> None:
    contract = read_folder(path)
    writer = "onnxruntime-genai's model builder" if contract.from_builder else "pard-rt export"
    vocabulary = f"{len(contract.head_tokens) or contract.vocab_size} logits"
    if contract.num_tokens is not None:
        vocabulary += f", {contract.num_tokens} tokens"
    print_field(paint(str(path), "bold"), f"  ONNX folder, written by {writer}", width=0)
    _print_facts(
        ("name", contract.name),
        ("form", contract.form),
        ("weights", contract.weights),
        (
            "layers",
            f"{contract.num_layers}, each with {contract.num_kv_heads} KV heads of "
            f"{contract.head_dim}",
        ),
        ("vocabulary", vocabulary),
        ("max_length", str(contract.max_length)),
        ("end tokens", ", ".join(map(str, contract.eos_token_ids)) or "none"),
        ("mask token", _mask_token(contract.mask_token_id)),
        ("on disk", format_bytes(folder_size(path))),
    )
    if contract.form == "portable":
        _print_facts(("migraphx", describe(path)))
    for provider in ("cpu", "cuda"):
        try:
            contract.check_provider(provider)
        except FolderError as error:
            _print_facts((provider, f"cannot run it: {error.problem}\n{error.remedy}"))


def _print_gguf(path: Path) -> None:
    with requiring("export", f"'{path}' is a GGUF file; reading it"):
        from pard_rt.models.gguf import number, open_gguf, text
    reader = open_gguf(path)
    architecture = text(reader, "general.architecture")
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    folder = conversion_of(path)
    print_field(paint(str(path), "bold"), "  GGUF file", width=0)
    _print_facts(
        ("name", text(reader, "general.name") or path.stem),
        ("architecture", architecture),
        ("layers", str(number(reader, f"{architecture}.block_count", 0))),
        ("max_length", str(number(reader, f"{architecture}.context_length", 0))),
        ("weights", ", ".join(f"{count} {name}" for name, count in types.most_common())),
        ("on disk", format_bytes(sum(map(folder_size, parts_of(path))))),
        ("converted", str(folder) if folder.is_dir() else "not converted yet"),
    )


def _print_hugging_face(path: Path) -> None:
    refuse_adapter(path)
    config = read_json(path / "config.json")
    kind = str(config.get("model_type", "unknown"))
    architecture = ", ".join(config.get("architectures") or ()) or "not said"
    if config.get("is_encoder_decoder"):
        architecture += ", an encoder-decoder: pard-rt cannot run it"
    print_field(paint(str(path), "bold"), "  Hugging Face directory", width=0)
    _print_facts(
        ("architecture", f"{architecture} ({kind})"),
        ("layers", _number(config, "num_hidden_layers")),
        ("hidden size", _number(config, "hidden_size")),
        ("vocabulary", f"{_number(config, 'vocab_size')} logits"),
        ("max_length", _number(config, "max_position_embeddings")),
        ("weights", str(config.get("dtype") or config.get("torch_dtype") or "type not said")),
        ("on disk", format_bytes(folder_size(path))),
    )
    fields = Fields(config.get, f"'{path / 'config.json'}'")
    rows = fields.integer("vocab_size", 1, 2**31 - 1) or 2**31 - 1
    _print_facts(("mask token", _mask_token(read_mask_token(fields, rows))))
    if find_spec("safetensors") is not None:
        check_weights(path)


def _mask_token(token: int | None) -> str:
    return "none: not a parallel draft" if token is None else f"{token}: a parallel draft"


def _number(config: dict[str, Any], key: str) -> str:
    return str(config.get(key, "not said"))


def _print_facts(*facts: tuple[str, str]) -> None:
    for label, value in facts:
        print_field(label, value, indent=2)
