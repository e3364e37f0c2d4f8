"""Export: a Hugging Face decoder to an ONNX folder that needs no PyTorch to run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import onnx_ir as ir
import torch

from pard_rt.errors import InvalidArgumentError, Notice, notify
from pard_rt.exporter.blocks import Blocks
from pard_rt.exporter.carried import load_blocks
from pard_rt.exporter.check import Agreement, Check
from pard_rt.exporter.folder import GRAPH, new_folder, write_contract, write_text_files
from pard_rt.exporter.fuse import fuse
from pard_rt.exporter.halve import round_to_half, store_halved
from pard_rt.exporter.lower import joinable, lowered, save
from pard_rt.exporter.matrices import blocks_multiplied
from pard_rt.exporter.quantize import BITS, rounded_matrices
from pard_rt.exporter.quiet import quiet
from pard_rt.exporter.repeat import Repeats, copying_layers, find_repeats
from pard_rt.exporter.trace import apply_contract_shapes, trace
from pard_rt.exporter.trim import trim_head
from pard_rt.models import OpenOptions, locate
from pard_rt.models.checkpoint import LoadedModel, load_checkpoint
from pard_rt.models.find import is_gguf
from pard_rt.progress import progress
from pard_rt.pytorch.probe import Adopted, adopt

__all__ = ["ExportReport", "Form", "Weights", "export"]

Form = Literal["gqa", "portable"]
Weights = Literal["fp32", "fp16", "int8", "int4", "gguf"]

_WRITTEN_BY_BLOCKS = 4  # tokens that a module writes to be tried: each dequantizes matrices
_FAIR_DIVERGENCE = 0.1  # nats: the model's own text becomes 10 % less likely with every token

_log = logging.getLogger("pard_rt.exporter")


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compared with the PyTorch module.

    Attributes
    ----------
    folder, form, weights
        What was asked for.
    agreement
        On texts that the module wrote.
    requires_own_attention
        Whether ONNX Runtime's own GroupQueryAttention refuses the model's heads, so that the folder
        runs with pard-rt's attention on the CPU only.
    """

    folder: Path
    form: Form
    weights: Weights
    agreement: Agreement
    requires_own_attention: bool


def export(
    model_dir_or_id: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    form: Form = "gqa",
    weights: Weights | None = None,
    fp16_files: bool = False,
    head_on_all_rows: bool = False,
    head_tokens: int | None = None,
    head_data: Sequence[str | os.PathLike[str]] = (),
    mask_token_id: int | None = None,
    max_length: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> ExportReport:
    """Export a decoder to an ONNX folder (docs/onnx-folder.md).

    Before the folder takes its name it is opened and compared with the PyTorch module, on texts
    that the module writes: a prompt, several rows after rejected ones, single rows. Graphs with
    integer weights are held to rounding error before their weights are rounded; what the rounding
    costs is reported.

    Parameters
    ----------
    model_dir_or_id
        A directory in Hugging Face format, a hub id, or a GGUF file.
    out
        The folder to write: new, or empty.
    form
        "gqa" for ONNX Runtime on CPU and CUDA; "portable" for standard operators only.
    weights
        Of the matrices. "int8" and "int4" are block-wise with float32 around them; "fp16" makes
        the whole graph, logits and cache float16. "gguf" keeps the blocks of a GGUF file as they
        are, which only pard-rt's kernels on the CPU multiply by. By default "gguf" for such a file,
        else "fp32".
    fp16_files
        Round "fp32" weights to float16 and store them so: files of half the size, opened as float32
        and computed in it.
    head_on_all_rows
        Multiply every row by the LM head and hand out the last ones, for MIGraphX, which cannot
        pick them before ("portable" only; docs/onnx-folder.md). Prompts cost more, the rounds of a
        target do not.
    head_tokens, head_data
        Of a draft: keep the logits of so many tokens, those that occur most in these files, which
        the target wrote (`regenerate`). Special tokens stay. The draft's LM head becomes as much
        smaller, and the text is the same.
    mask_token_id
        The parallel draft's mask token, where the configuration does not say it.
    max_length
        Most positions a sequence may have; the model's own limit unless given.
    revision, token, cache_dir, trust_remote_code
        See `pard_rt.OpenOptions`.

    Returns
    -------
    ExportReport

    Raises
    ------
    InvalidArgumentError
        Arguments that do not fit, or `out` is already there.
    ModelError
        The model cannot be loaded, traced or run, its tokenizer cannot be written, or the graph
        does not agree with it.
    Error
        The folder cannot be written; nothing is left behind.

    Warns
    -----
    Notice
        The rounded weights predict other text than the model does.

    Examples
    --------
    >>> export("Qwen/Qwen2.5-0.5B", "qwen-0.5b-onnx", weights="int8")  # doctest: +SKIP
    """
    is_file = is_gguf(Path(model_dir_or_id).expanduser())
    if weights is None:
        weights = "gguf" if is_file else "fp32"
    _check_arguments(form, weights, fp16_files, head_on_all_rows, is_gguf=is_file)
    _check_head(head_tokens, head_data, weights)
    options = OpenOptions(
        dtype=torch.float16 if weights == "fp16" else torch.float32,
        mask_token_id=mask_token_id,
        max_length=max_length,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        trust_remote_code=trust_remote_code,
    )
    target = Path(out)
    with quiet(), new_folder(target) as folder:
        plan = _Plan(folder, form, weights, head_on_all_rows=head_on_all_rows)
        source = locate(model_dir_or_id, options)
        if weights == "gguf":
            agreement, own = plan.carry_over(source, options), False
        else:
            loaded = load_checkpoint(source, options)
            if head_tokens is not None:
                loaded = trim_head(loaded, head_tokens, [Path(path) for path in head_data])
            agreement, own = plan.write(source, loaded, fp16_files=fp16_files)
    _log.info("%s: %s graph, %s weights, %s", target, form, weights, agreement)
    if agreement.kl_divergence > _FAIR_DIVERGENCE:
        better = {
            "int4": "--weights int8 comes closer.",
            "gguf": "A file of more bits comes closer.",
        }
        notify(
            Notice(
                f"The {weights} weights predict other text than the model does",
                f"KL divergence: {agreement.kl_divergence:.2g} nats, where up to "
                f"{_FAIR_DIVERGENCE} are common.",
                f"The likeliest token is the same in {100 * agreement.same_argmax:.0f} % of the "
                "rows.",
                better.get(weights, "--weights fp32 comes closer."),
            )
        )
    return ExportReport(target, form, weights, agreement, own)


@dataclass(frozen=True)
class _Plan:
    """What is written, and where."""

    folder: Path
    form: str
    weights: str
    head_on_all_rows: bool

    def write(
        self, source: Path, loaded: LoadedModel, *, fp16_files: bool
    ) -> tuple[Agreement, bool]:
        """Write a module, exactly and, where weights are rounded, rounded.

        Returns
        -------
        Agreement, bool
            And whether it needs pard-rt's attention.
        """
        module, form = loaded.module, self.form
        if fp16_files:
            round_to_half(module)
        adopted = adopt(module, loaded.facts.max_length)
        write_text_files(self.folder, source, loaded)
        check = Check(loaded, adopted, form)
        bits = BITS.get(self.weights)
        graph = GRAPH if bits is None else "exact.onnx"
        contract = partial(write_contract, self.folder, loaded.facts, adopted.layout, form)

        def write_exact(repeats: Repeats | None) -> tuple[ir.Model, Agreement]:
            traced = self._traced(loaded, adopted, {}, repeats)
            model = lowered(traced, module, form)
            if fp16_files:
                store_halved(model)
            save(model, self.folder / graph)
            contract(self.weights if bits is None else "fp32", graph=graph)
            return traced, check.require_exact(self.folder)

        repeats = find_repeats(module, adopted.layout.num_layers)
        traced, agreement = copying_layers(repeats, write_exact)
        may_be_own = form == "gqa" and self.weights != "fp16"
        own = may_be_own and not check.runs_in_onnxruntime_alone(self.folder)
        if bits is not None:
            (self.folder / graph).unlink()
            (self.folder / f"{graph}.data").unlink()
            rounded = rounded_matrices(loaded, bits)
            save(lowered(traced, module, form, rounded), self.folder / GRAPH)
        contract(self.weights, requires_own_attention=own)
        if bits is not None:
            agreement = check.require_sense(self.folder, self.weights)
        return agreement, own

    def carry_over(self, file: Path, options: OpenOptions) -> Agreement:
        """Write the blocks of a GGUF file; matrices that have them are never all floats at once.

        The module is tried with the layers that are traced, and compared with all of them.
        """
        with progress(f"converting {file.name}") as shown:
            loaded, blocks = load_blocks(file, options)
            shown.reach(0.2)
            write_text_files(self.folder, file, loaded)
            module = loaded.module
            repeats = find_repeats(module, module.config.num_hidden_layers)
            copies = () if repeats is None else repeats.copies
            with blocks_multiplied(module, blocks, zeros=copies):
                adopted = adopt(module, loaded.facts.max_length, _WRITTEN_BY_BLOCKS)
                shown.reach(0.3)
                traced = copying_layers(repeats, partial(self._traced, loaded, adopted, blocks))
            shown.reach(0.5)
            with blocks_multiplied(module, blocks):
                check = Check(loaded, adopted, self.form, written=0)
            shown.reach(0.7)
            self._save_blocks(traced, module, blocks)
            blocks.clear()
            shown.reach(0.9)
            write_contract(self.folder, loaded.facts, adopted.layout, self.form, self.weights)
            return check.require_sense(self.folder, self.weights)

    def _save_blocks(self, traced: ir.Model, module: Any, blocks: Mapping[str, Blocks]) -> None:
        model = lowered(traced, module, self.form, blocks)
        store_halved(model, matrices_only=True)
        save(model, self.folder / GRAPH)

    def _traced(
        self,
        loaded: LoadedModel,
        adopted: Adopted,
        blocks: Mapping[str, Blocks],
        repeats: Repeats | None,
    ) -> ir.Model:
        module, longest = loaded.module, loaded.facts.max_length
        on_all_rows = self.head_on_all_rows
        model = trace(module, adopted, self.form, longest, repeats, head_on_all_rows=on_all_rows)
        fuse(model, partial(joinable, module, blocks))
        apply_contract_shapes(model)
        return model


def _check_head(
    head_tokens: int | None, head_data: Sequence[str | os.PathLike[str]], weights: str
) -> None:
    if (head_tokens is None) == bool(head_data):
        raise InvalidArgumentError(
            "head_tokens and head_data belong together",
            "how many tokens, and files that the target wrote",
            f"head_tokens={head_tokens} and {len(head_data)} files",
            "Give both or neither.",
        )
    if head_tokens is not None and weights == "gguf":
        raise InvalidArgumentError(
            "The LM head of a GGUF file stays whole",
            "weights int8, int4 or floats",
            "weights gguf",
            "Choose other weights, or leave head_tokens out.",
        )


def _check_arguments(
    form: str, weights: str, fp16_files: bool, head_on_all_rows: bool, *, is_gguf: bool
) -> None:
    for what, given, known in (
        ("form", form, get_args(Form)),
        ("weights", weights, get_args(Weights)),
    ):
        if given not in known:
            raise InvalidArgumentError(
                f"Unknown {what} of an ONNX export", " or ".join(known), given, f"Choose a {what}."
            )
    if weights == "gguf" and not (is_gguf and form == "gqa"):
        raise InvalidArgumentError(
            "Weights of a GGUF file are kept only where there is one, for pard-rt's kernels",
            "a GGUF file, and form gqa",
            f"{'a GGUF file' if is_gguf else 'no such file'}, and form {form}",
            "Choose other weights.",
        )
    if fp16_files and weights != "fp32":
        raise InvalidArgumentError(
            "fp16_files is about float32 weights", "weights fp32", weights, "Choose one of the two."
        )
    if head_on_all_rows and form != "portable":
        raise InvalidArgumentError(
            "head_on_all_rows is for MIGraphX", "form portable", form, "Choose one of the two."
        )
