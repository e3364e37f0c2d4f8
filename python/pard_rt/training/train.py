"""`train`: a small model of a target's family becomes its parallel draft."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pard_rt.errors import InvalidArgumentError, ModelError
from pard_rt.loading import LoadedModel, load
from pard_rt.opening import open_model
from pard_rt.training.acceptance import Acceptance, hold_out
from pard_rt.training.attention import use_chain_attention
from pard_rt.training.documents import Document, Pack, pack_documents, read_documents
from pard_rt.training.loop import Schedule, Trainer, adamw, writing
from pard_rt.training.loss import MaskPredictionLoss, by_subtask
from pard_rt.training.mask_prediction import MaskPrediction
from pard_rt.training.workers import join

LOG_EVERY = 20  # steps


@dataclass(frozen=True)
class Trained:
    """What training left.

    Attributes
    ----------
    folder
        A Hugging Face directory: the draft, its tokenizer, `pard_token` and `spd_type`.
    mask_token_id
        The mask token, and why it was taken.
    mask_token_reason
        See `mask_token_id`.
    steps, tokens
        Steps taken, and real tokens seen in them.
    loss
        Mean over the last steps, in nats per row.
    tokens_per_round
        With the target, on held-out documents, K being that of training; None without a target.
    """

    folder: Path
    mask_token_id: int
    mask_token_reason: str
    steps: int
    tokens: int
    loss: float
    tokens_per_round: float | None


def train(
    model: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    settings: MaskPrediction | None = None,
    mask_token_id: int | None = None,
    epochs: float = 1.0,
    max_length: int = 1024,
    tokens_per_step: int = 4096,
    learning_rate: float = 5e-5,
    seed: int = 0,
    target: str | os.PathLike[str] | None = None,
    measure_every: int = 500,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    tokens_per_forward: int = 16384,
    checkpoint_layers: bool = False,
    save_every: float = 300.0,
    log: Callable[[str], None] = print,
    watch: Callable[[str], None] = lambda text: None,
) -> Trained:
    """Train a parallel draft; begun again with the same arguments, it goes on where it was.

    Parameters
    ----------
    model
        Hugging Face directory or hub id of a small model of the target's family.
    data
        Files: see `read_documents`.
    output
        Folder to write; the state to go on from lies in it until the end.
    settings
        K in training and conditional drop.
    mask_token_id
        By default one the model does not use: see `choose_mask_token`.
    epochs
        How often everything is seen.
    max_length
        Tokens of a document that are seen together.
    tokens_per_step
        Real tokens of a step, in documents that know nothing of each other.
    learning_rate
        Of AdamW; it rises, stays, and falls to zero.
    seed
        Of the order of documents and of conditional drop.
    target
        ONNX folder, Hugging Face directory or hub id of the model the draft is for. With it, some
        documents are held out, and tokens per round on them are measured.
    measure_every
        Steps between those measurements; there is one at the beginning and one at the end.
    device
        Where the models are: under torchrun, "cuda" is one card for every process.
    dtype
        Of the computation; by default bfloat16 on cards that have it, else float32. Weights and
        optimizer are float32, and saved in the type they came in.
    tokens_per_forward
        A step of more real tokens takes several forwards.
    checkpoint_layers
        Keep the inputs of layers alone for the backward pass, and compute the rest again.
    save_every
        Seconds between checkpoints.
    log
        Takes lines about the progress.
    watch
        Takes, every step, a few words of where it stands.

    Raises
    ------
    InvalidArgumentError
        Data, lengths or the mask token cannot be used; nothing has been written.
    IncompatibleModelsError
        The draft does not fit the target.
    ModelError
        The model cannot be trained so: its attention is not plain, or its logits are changed.
    FolderError
        Something cannot be written; the state before stays.
    """
    settings = settings or MaskPrediction()
    output = Path(output)
    workers, device = join(device)
    if not workers.is_first:
        log = watch = lambda text: None
    loaded = load(model, device=device)
    stored = loaded.module.dtype
    if dtype is None:
        narrow = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported()
        dtype = torch.bfloat16 if narrow else torch.float32
    limit = loaded.facts.max_length
    for name, value, low, high in (
        ("max_length", max_length, 2, limit),
        ("tokens_per_step", tokens_per_step, max_length, 1 << 24),
        ("tokens_per_forward", tokens_per_forward, 1, 1 << 24),
        ("measure_every", measure_every, 1, 1 << 24),
    ):
        if not low <= value <= high:
            raise InvalidArgumentError(
                f"{name} is out of range",
                f"{low}..{high}",
                str(value),
                f"The model has {limit} positions; a step holds at least one whole document.",
            )
    documents = read_documents(
        [Path(path) for path in data], loaded.tokenizer, max_length=max_length
    )
    used = {token for document in documents for token in document.tokens.tolist()}
    held_out: list[Document] = []
    if target is not None:
        documents, held_out = hold_out(documents, seed)
    mask, reason = choose_mask_token(loaded, mask_token_id, used)
    log(f"mask token {mask}: {reason}")
    _check_head(loaded)

    num_packs = len(pack_documents(documents, tokens_per_step, seed))
    steps = max(1, round(epochs * num_packs))
    warmup = min(40, max(1, steps // 10))
    schedule = Schedule(steps, other_rate=learning_rate, warmup=warmup)
    packs: dict[int, list[Pack]] = {}

    def pack(step: int) -> Pack:
        epoch = step // num_packs
        if epoch not in packs:
            packs.clear()
            packs[epoch] = pack_documents(documents, tokens_per_step, seed + epoch)
        # Epochs are packed anew, and some have a pack more or less.
        return packs[epoch][step % num_packs % len(packs[epoch])]

    module = loaded.module.float().requires_grad_(True)
    use_chain_attention(module)
    if checkpoint_layers:
        # Its name until transformers 5.23, and from then on.
        old, new = "gradient_checkpointing_enable", "activation_checkpointing_enable"
        getattr(module, new, getattr(module, old))({"use_reentrant": False})
    loss = MaskPredictionLoss(
        module,
        settings,
        mask,
        workers=workers,
        tokens_per_forward=tokens_per_forward,
        dtype=dtype,
    )
    acceptance = None
    if target is not None and workers.is_first:
        opened = open_model(target, device=device.partition(":")[0])
        acceptance = Acceptance(opened.model, loaded, held_out, mask, settings.num_subtasks)
        log(f"tokens per round before training: {acceptance():.2f}")
    worth: float | None = None

    def report(step: int, measured: Tensor) -> dict[str, Any]:
        nonlocal worth
        record: dict[str, Any] = by_subtask(measured)
        due = step == steps or step // measure_every != (step - LOG_EVERY) // measure_every
        if acceptance is not None and due:
            worth = acceptance()
            record["tokens_per_round"] = round(worth, 4)
            log(f"tokens per round: {worth:.2f}")
        return record

    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        module,
        schedule,
        output / "training.pt",
        optimizers=adamw,
        workers=workers,
        measured=loss.measured,
        report=report,
        log=log,
        watch=watch,
    )

    def losses(step: int) -> Iterable[Tensor]:
        return loss(pack(step), torch.Generator().manual_seed((seed << 32) + step))

    trainer.run(losses, save_every=save_every, log_every=LOG_EVERY)
    if acceptance is not None and worth is None:  # all steps had been taken before
        worth = acceptance()
    seen = sum(len(pack(step).tokens) for step in range(steps))
    module.config.pard_token = mask
    module.config.spd_type = "pard"
    # Where engines made for transformers 4 look for it; version 5 writes it into rope_parameters.
    rope = getattr(module.config, "rope_parameters", None) or {}
    if "rope_theta" in rope:
        module.config.rope_theta = rope["rope_theta"]
    module.set_attn_implementation("sdpa")
    if workers.is_first:
        with writing(output):
            _save(loaded, stored, output)
    workers.wait()
    return Trained(output, mask, reason, steps, seen, trainer.last_loss, worth)


def choose_mask_token(loaded: LoadedModel, given: int | None, used: set[int]) -> tuple[int, str]:
    """Choose the mask token: the one given, the model's own, or an id that no text has.

    Ids behind the tokenizer's are rows of padding that nothing has trained; where there are none, a
    reserved token serves, and else the embedding grows by a row.

    Parameters
    ----------
    loaded
        The model, whose embedding may grow.
    given
        What the user asks for.
    used
        Ids that occur in the data.

    Raises
    ------
    InvalidArgumentError
        The token given is outside the embedding, or occurs in the data.
    """
    rows = loaded.module.get_input_embeddings().weight.shape[0]
    if given is not None:
        if not 0 <= given < rows or given in used:
            raise InvalidArgumentError(
                "The mask token cannot be used",
                f"an id in 0..{rows - 1} that no document has",
                f"{given}, which {'occurs in the data' if given in used else 'is outside'}",
                "Leave it out: one is chosen.",
            )
        return given, "as asked for"
    own = loaded.facts.mask_token_id
    if own is not None and own not in used:
        return own, "the model's own"
    vocabulary = loaded.tokenizer.get_vocab() if loaded.tokenizer is not None else {}
    known = max(vocabulary.values(), default=-1) + 1
    if known < rows:
        return known, f"the first of {rows - known} rows that pad the embedding"
    reserved = sorted(
        token for text, token in vocabulary.items()
        if ("reserved" in text or "unused" in text) and token not in used
    )  # fmt: skip
    if reserved:
        return reserved[-1], "a reserved token of the tokenizer"
    loaded.module.resize_token_embeddings(rows + 1, mean_resizing=False)
    with torch.no_grad():
        embedding = loaded.module.get_input_embeddings().weight
        embedding[rows] = embedding[:rows].float().mean(dim=0).to(embedding.dtype)
    return rows, "a new row of the embedding: no id was free"


def _check_head(loaded: LoadedModel) -> None:
    """Refuse models that change logits behind their LM head: the loss is computed before."""
    config = loaded.config.get_text_config()
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ModelError(
                f"{loaded.facts.name} changes its logits behind the LM head",
                "a plain LM head",
                f"{name} = {getattr(config, name)}",
                "Take a draft of another architecture.",
            )


def _save(loaded: LoadedModel, stored: torch.dtype, output: Path) -> None:
    """Write the checkpoint: nothing takes its name before all of it is written."""
    partial = output / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    loaded.module.to(stored).save_pretrained(partial)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(partial)
    for file in partial.iterdir():
        os.replace(file, output / file.name)
    partial.rmdir()
