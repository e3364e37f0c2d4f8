"""`train`: a small model of a target's family becomes its parallel draft."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pard_rt.errors import InvalidArgumentError, ModelError, RuntimeMissingError, require_range
from pard_rt.models import OpenOptions, open_model
from pard_rt.models.checkpoint import LoadedModel, load, require_device
from pard_rt.training.acceptance import Acceptance, MeasuredAcceptance, hold_out
from pard_rt.training.attention import use_chain_attention
from pard_rt.training.checkpoint import save_checkpoint
from pard_rt.training.documents import Document, Epochs, digest_documents, read_documents
from pard_rt.training.loop import Schedule, Trainer, adamw
from pard_rt.training.loss import MaskPredictionLoss, by_subtask
from pard_rt.training.mask_prediction import MaskPrediction
from pard_rt.training.mask_token import choose_mask_token
from pard_rt.training.model_card import CURVES, model_card, plot_curves
from pard_rt.training.workers import join
from pard_rt.vocabulary import unknown_token
from pard_rt.writing import require_folder, writing

LOG_EVERY = 20  # steps
_MAX_LENGTH = 1024  # tokens of a document, where the model and a step have room
_MADE_WITH = ("pard-rt", "torch", "transformers")


@dataclass(frozen=True)
class Trained:
    """What training left.

    Attributes
    ----------
    folder
        A Hugging Face directory: the draft, its tokenizer, `pard_token` and `spd_type`; a model
        card, and a picture of the curves.
    mask_token_id
        The mask token, and why it was taken.
    mask_token_reason
        See `mask_token_id`.
    steps, tokens
        Steps taken, and real tokens seen in them.
    loss
        Mean over the last steps, in nats per row.
    acceptance
        With the target, on held-out documents; None without a target.
    """

    folder: Path
    mask_token_id: int
    mask_token_reason: str
    steps: int
    tokens: int
    loss: float
    acceptance: MeasuredAcceptance | None


def train(
    model: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    settings: MaskPrediction | None = None,
    mask_token_id: int | None = None,
    epochs: float = 1.0,
    max_length: int | None = None,
    tokens_per_step: int = 4096,
    learning_rate: float = 5e-5,
    seed: int = 0,
    target: str | os.PathLike[str] | None = None,
    measure_every: int = 500,
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
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
        Folder to write; the state to go on from, ``training.pt``, stays in it.
    settings
        K in training and conditional drop.
    mask_token_id
        By default one the model does not use: see `choose_mask_token`.
    epochs
        How often everything is seen, to a step or so: each lays the documents out anew. More than
        before lengthen a training that is there.
    max_length
        Tokens of a document that are seen together; by default 1024, or as many as the model or a
        step takes where that is fewer.
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
    revision, trust_remote_code
        Of the model and, the latter, of the target too: see `pard_rt.OpenOptions`.
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
        Data, lengths, the mask token or the device cannot be used; nothing has been written.
    RuntimeMissingError
        The device is a card, and PyTorch sees none.
    IncompatibleModelsError
        The draft does not fit the target.
    ModelError
        The model cannot be trained so: its attention is not plain, or its logits are changed.
    FolderError
        The output holds another training, or cannot be written; the state before stays.
    """
    settings = settings or MaskPrediction()
    output = Path(output)
    require_folder(output.absolute())
    require_device(device)
    workers, device = join(device)
    if not workers.is_first:
        log = watch = lambda text: None
    loaded = load(model, device=device, revision=revision, trust_remote_code=trust_remote_code)
    stored = loaded.module.dtype
    if dtype is None:
        narrow = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported()
        dtype = torch.bfloat16 if narrow else torch.float32
    positions = loaded.facts.max_length
    fits = f"The model has {positions} positions; a step holds at least one whole document."
    require_range("tokens_per_step", tokens_per_step, 2, 1 << 24)
    if max_length is None:
        max_length = min(_MAX_LENGTH, positions, tokens_per_step)
    require_range("max_length", max_length, 2, positions, fits)
    require_range("tokens_per_step", tokens_per_step, max_length, 1 << 24, fits)
    require_range("tokens_per_forward", tokens_per_forward, 1, 1 << 24)
    require_range("measure_every", measure_every, 1, 1 << 24)
    require_range("seed", seed, 0, 2**31 - 1)
    for name, value in (("epochs", epochs), ("learning_rate", learning_rate)):
        if not 0 < value < math.inf:
            raise InvalidArgumentError(
                f"{name} is out of range", "a number above 0", str(value), "Choose one."
            )
    documents = read_documents(
        [Path(path) for path in data], loaded.tokenizer, max_length=max_length
    )
    used = {token for document in documents for token in document.tokens.tolist()}
    _require_known(loaded, used)
    held_out: list[Document] = []
    if target is not None:
        documents, held_out = hold_out(documents, seed)
    mask, reason = choose_mask_token(loaded, mask_token_id, used)
    log(f"mask token {mask}: {reason}")
    _check_head(loaded)

    pack = Epochs(documents, tokens_per_step, seed)
    steps = max(1, round(epochs * pack.num_steps))
    warmup = min(40, max(1, steps // 10))
    schedule = Schedule(steps, other_rate=learning_rate, warmup=warmup)
    module = _prepare(loaded.module, checkpoint_layers)
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
        opened = open_model(target, OpenOptions(device=device, trust_remote_code=trust_remote_code))
        acceptance = Acceptance(opened, loaded, held_out, mask, settings.num_subtasks)
        log(f"tokens per round before training: {acceptance().tokens_per_round:.2f}")
    worth: MeasuredAcceptance | None = None

    def report(step: int, measured: Tensor) -> dict[str, Any]:
        nonlocal worth
        record: dict[str, Any] = by_subtask(measured)
        due = step == steps or step // measure_every != (step - LOG_EVERY) // measure_every
        if acceptance is not None and due:
            worth = acceptance()
            record["tokens_per_round"] = round(worth.tokens_per_round, 4)
            log(f"tokens per round: {worth.tokens_per_round:.2f}")
        return record

    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        module,
        schedule,
        output / "training.pt",
        settings={
            "model": loaded.facts.name,
            "dtype": str(dtype),
            "held out for a target": len(held_out),
            "data": digest_documents(documents),
            **asdict(settings),
            "mask_token_id": mask,
            "tokens_per_step": tokens_per_step,
            "learning_rate": learning_rate,
            "seed": seed,
        },
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
    steps = trainer.step  # a training that had come further is not taken back
    if acceptance is not None and worth is None:  # all steps had been taken before
        worth = acceptance()
    seen = sum(len(pack(step).tokens) for step in range(steps))
    if workers.is_first:
        table = {
            "data": f"{len(documents)} documents of {', '.join(Path(p).name for p in data)}",
            "longest document": f"{max_length} tokens",
            "seen": f"{seen} tokens in {steps} steps",
            "K in training": str(settings.num_subtasks),
            "conditional drop": f"r {settings.retention}, at least {settings.min_retention}",
            "mask token": f"{mask}, {reason}",
            "learning rate": f"{learning_rate:g}, AdamW",
            "seed": str(seed),
            "computed in": str(dtype).removeprefix("torch."),
            "last loss": f"{trainer.last_loss:.3f} nats a row",
            "made with": ", ".join(f"{name} {version(name)}" for name in _MADE_WITH),
        }
        with writing(output):
            drawn = _draw(trainer.history, output, log)
            base = loaded.facts.name if Path(model).expanduser().is_dir() else str(model)
            card = model_card(output.absolute().name, base, table, worth, has_curves=drawn)
            save_checkpoint(loaded, stored, mask, card, output)
    workers.wait()
    return Trained(output, mask, reason, steps, seen, trainer.last_loss, worth)


def _prepare(module: Any, checkpoint_layers: bool) -> Any:
    """Let a module train: float32 weights, attention through chains."""
    module.float().requires_grad_(True)
    use_chain_attention(module)
    if checkpoint_layers:
        # Its name until transformers 5.23, and from then on.
        old, new = "gradient_checkpointing_enable", "activation_checkpointing_enable"
        getattr(module, new, getattr(module, old))({"use_reentrant": False})
    return module


def _draw(history: Path, output: Path, log: Callable[[str], None]) -> bool:
    if not history.is_file() or not history.stat().st_size:
        return False
    try:
        plot_curves(history, output / CURVES)
    except (RuntimeMissingError, ValueError, KeyError, IndexError) as error:  # the draft matters
        log(f"no picture of the curves: {error}")
        return False
    return True


def _require_known(loaded: LoadedModel, used: set[int]) -> None:
    """Refuse data with a token that the tokenizer knows and the model does not."""
    rows = loaded.module.get_input_embeddings().weight.shape[0]
    if (token := max(used)) >= rows:
        raise unknown_token(loaded.tokenizer.convert_ids_to_tokens(token), token, rows)


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
