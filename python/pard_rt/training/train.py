"""`train`: a small model of a target's family becomes its parallel draft."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from pard_rt.errors import ModelError, RuntimeMissingError
from pard_rt.models import OpenOptions, open_model
from pard_rt.models.checkpoint import LoadedModel, load, require_device
from pard_rt.training.acceptance import Acceptance, MeasuredAcceptance, hold_out
from pard_rt.training.attention import use_chain_attention
from pard_rt.training.checkpoint import save_checkpoint
from pard_rt.training.config import TrainConfig, fast_dtype
from pard_rt.training.documents import Document, Epochs, digest_documents, read_documents
from pard_rt.training.head_tokens import most_written
from pard_rt.training.kept_logits import with_logits
from pard_rt.training.loop import Schedule, Trainer, adamw
from pard_rt.training.loss import MaskPredictionLoss, by_subtask
from pard_rt.training.mask_token import choose_mask_token
from pard_rt.training.model_card import CURVES, model_card, plot_curves
from pard_rt.training.pruned import choose_layers, freeze_embeddings, keep_layers
from pard_rt.training.workers import Workers, join
from pard_rt.vocabulary import unknown_token
from pard_rt.writing import require_folder, require_own, writing

LOG_EVERY = 20  # steps
_LEFT = frozenset({"training.pt", "training.jsonl"})  # by a run that was cut off
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
        With the target, on held-out documents, of the best draft, which is the one that is kept;
        None without a target.
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
    config: TrainConfig | None = None,
    *,
    target: str | os.PathLike[str] | None = None,
    log: Callable[[str], None] = print,
    watch: Callable[[str], None] = lambda text: None,
    on_log: Callable[[dict[str, Any]], None] = lambda record: None,
    **options: Any,
) -> Trained:
    """Train a parallel draft; with the same arguments again, it resumes.

    Parameters
    ----------
    model
        Hugging Face directory, GGUF file or hub id of a small model of the target's family; or,
        with `layers`, of the target itself.
    data
        Files: see `read_documents`.
    output
        Folder to write, new or of an earlier run; the state to resume from, ``training.pt``, stays
        in it.
    config, options
        See `TrainConfig`; its fields may be given as options.
    target
        ONNX folder, Hugging Face directory, GGUF file or hub id of the model the draft is for.
        With it, some records are held out, and tokens per round on them are measured.
    log
        Takes lines about the progress.
    watch
        Takes, every step, a few words about it.
    on_log
        Takes the records of ``training.jsonl`` as they are written.

    Raises
    ------
    InvalidArgumentError
        Data, lengths, layers, the mask token or the device cannot be used; nothing has been
        written.
    RuntimeMissingError
        The device is a card, and PyTorch sees none.
    IncompatibleModelsError
        The draft does not fit the target.
    ModelError
        The model cannot be trained so: its attention is not plain, or its logits are changed.
        Or training diverged: the last state saved stays.
    FolderError
        The output is an input, holds files of something else or another training, or cannot be
        written; the state before stays.
    """
    config = replace(config or TrainConfig(), **options)
    output = Path(output)
    require_folder(output.absolute())
    require_own(output, _LEFT, [Path(path) for path in (model, target) if path is not None])
    require_device(config.device)
    workers, device = join(config.device)
    if not workers.is_first:
        log = watch = lambda text: None
    remote = config.trust_remote_code
    loaded = load(model, device=device, revision=config.revision, trust_remote_code=remote)
    stored = loaded.module.dtype
    max_length = config.length_within(loaded.facts.max_length)
    paths = [Path(path) for path in data]
    documents = read_documents(paths, loaded.tokenizer, max_length=max_length)
    if config.distill:
        documents = with_logits(documents, paths, loaded.tokenizer)
    taught = sum(document.likely is not None for document in documents)
    used = {token for document in documents for token in document.tokens.tolist()}
    _require_known(loaded, used)
    held_out: list[Document] = []
    if target is not None:
        documents, held_out = hold_out(documents, config.seed)
    mask, reason = choose_mask_token(loaded, config.mask_token_id, used)
    log(f"mask token {mask}: {reason}")
    checkpoint = output / "training.pt"
    known = _settings_of(checkpoint)
    _check_head(loaded)
    made_of, kept = "all layers", []
    if config.layers is not None:
        depth = loaded.module.config.num_hidden_layers
        kept = keep_layers(loaded, _layers(loaded, config.layers, documents, known, workers, log))
        made_of = f"layers {', '.join(map(str, kept))} of {depth}; embedding and LM head frozen"
        log(made_of)

    named = known.get("dtype", "").removeprefix("torch.")
    dtype = config.dtype or getattr(torch, named, None) or fast_dtype(device)
    pack = Epochs(documents, config.tokens_per_step, config.seed)
    steps = max(1, round(config.epochs * pack.num_steps))
    healed = round(config.heal * pack.num_steps)
    schedule = Schedule(steps, other_rate=config.learning_rate, warmup=min(40, max(1, steps // 10)))
    module = _prepare(loaded.module, config.checkpoint_layers)
    if config.layers is not None:
        freeze_embeddings(module, mask)
    head = None
    if config.head_tokens is not None:
        head, share = most_written(documents, config.head_tokens, loaded.tokenizer, loaded.facts)
        log(f"learning {len(head)} tokens, {100 * share:.1f} % of the data")
    loss = MaskPredictionLoss(
        module,
        config.settings,
        mask,
        workers=workers,
        tokens_per_forward=config.tokens_per_forward,
        dtype=dtype,
        distill=config.distill,
        head_tokens=head,
    )
    acceptance = None
    if target is not None and workers.is_first:
        opened = open_model(target, OpenOptions(device=device, trust_remote_code=remote))
        acceptance = Acceptance(opened, loaded, held_out, mask, config.settings.num_subtasks, head)
        log(f"tokens per round before training: {acceptance().tokens_per_round:.2f}")

    fresh: list[MeasuredAcceptance | None] = []  # measured, and not saved yet

    def report(step: int, measured: Tensor) -> dict[str, Any]:
        record: dict[str, Any] = by_subtask(measured)
        every = config.measure_every
        due = step == steps or step // every != (step - LOG_EVERY) // every
        if due and workers.is_first:
            worth = None if acceptance is None else acceptance()
            if worth is not None:
                record["tokens_per_round"] = round(worth.tokens_per_round, 4)
                record["acceptance"] = asdict(worth)
                log(f"tokens per round: {worth.tokens_per_round:.2f}")
            fresh.append(worth)
        return record

    def logged(record: dict[str, Any]) -> None:
        on_log(record)
        while fresh:  # now that the curves have it too
            save(fresh.pop())

    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        module,
        schedule,
        checkpoint,
        settings={
            "model": loaded.facts.name,
            "layers": kept,
            "dtype": str(dtype),
            "held out for a target": len(held_out),
            "data": digest_documents(documents),
            **asdict(config.settings),
            "healed steps": healed,
            "distill": config.distill if taught else 0.0,
            "head_tokens": config.head_tokens,
            "mask_token_id": mask,
            "tokens_per_step": config.tokens_per_step,
            "learning_rate": config.learning_rate,
            "seed": config.seed,
        },
        optimizers=adamw,
        workers=workers,
        measured=loss.measured,
        report=report,
        log=log,
        watch=watch,
        on_log=logged,
    )
    best = _Best()
    if acceptance is not None:
        best.recall(output, trainer.history, opened.info.name)

    def save(worth: MeasuredAcceptance | None) -> None:
        if not best.is_beaten_by(worth):
            return
        table = {
            "made of": made_of,
            "data": f"{len(documents)} documents of {', '.join(Path(p).name for p in data)}",
            "learnt from logits": f"{taught} documents, {config.distill:g} of the loss",
            "tokens that are learnt": str(config.head_tokens or "all"),
            "longest document": f"{max_length} tokens",
            "seen": f"{_seen(pack, trainer.step)} tokens in {trainer.step} of {steps} steps",
            "healing": f"{min(healed, trainer.step)} steps",
            "K in training": str(config.settings.num_subtasks),
            "conditional drop": f"r {config.settings.retention}, at least "
            f"{config.settings.min_retention}",
            "mask token": f"{mask}, {reason}",
            "learning rate": f"{config.learning_rate:g}, AdamW",
            "seed": str(config.seed),
            "computed in": str(dtype).removeprefix("torch."),
            "last loss": f"{trainer.last_loss:.3f} nats a row",
            "made with": ", ".join(f"{name} {version(name)}" for name in _MADE_WITH),
        }
        with writing(output):
            drawn = _draw(trainer.history, output, log)
            base = loaded.facts.name if Path(model).expanduser().exists() else str(model)
            card = model_card(output.absolute().name, base, table, worth, has_curves=drawn)
            save_checkpoint(loaded, stored, mask, card, output)
            best.worth, best.is_saved = worth, True

    def losses(step: int) -> Iterable[Tensor]:
        noise = torch.Generator().manual_seed((config.seed << 32) + step)
        return loss(pack(step), noise, next_tokens_alone=step < healed)

    trainer.run(losses, save_every=config.save_every, log_every=LOG_EVERY)
    steps = trainer.step  # a training that had come further is not taken back
    if workers.is_first:
        if best.worth is None and not best.is_saved:  # all had been done before
            save(None if acceptance is None else acceptance())
        else:
            _draw(trainer.history, output, log)  # to the end, whichever draft is the best
    workers.wait()
    return Trained(output, mask, reason, steps, _seen(pack, steps), trainer.last_loss, best.worth)


class _Best:
    """The best draft in the folder, by tokens per round; without a target, the last one."""

    def __init__(self) -> None:
        self.worth: MeasuredAcceptance | None = None
        self.is_saved = False  # by this run

    def recall(self, output: Path, history: Path, target: str) -> None:
        """Read what earlier runs measured with the target."""
        if not (output / "model.safetensors").exists() or not history.is_file():
            return
        for line in history.read_text("utf-8").splitlines():
            if (measured := json.loads(line).get("acceptance")) is not None:
                worth = MeasuredAcceptance(**measured)
                if worth.target == target and self.is_beaten_by(worth):
                    self.worth = worth

    def is_beaten_by(self, worth: MeasuredAcceptance | None) -> bool:
        """Whether a draft takes the place of the one in the folder."""
        if worth is None or self.worth is None:
            return True
        return worth.tokens_per_round > self.worth.tokens_per_round


def _seen(pack: Epochs, steps: int) -> int:
    return sum(len(pack(step).tokens) for step in range(steps))


def _settings_of(checkpoint: Path) -> dict[str, Any]:
    """Return the settings of a run that is resumed; none where its state cannot be read."""
    try:
        state: dict[str, Any] = torch.load(checkpoint, mmap=True, map_location="cpu")
        return dict(state["settings"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError):
        return {}


def _layers(
    loaded: LoadedModel,
    asked: int | tuple[int, ...],
    documents: list[Document],
    known: dict[str, Any],
    workers: Workers,
    log: Callable[[str], None],
) -> Sequence[int]:
    """Return the layers to start from: named, a resumed run's, or chosen by the first process."""
    if not isinstance(asked, int):
        return asked
    chosen: list[int] = known.get("layers") or []
    if len(chosen) != asked and workers.is_first:
        log("choosing layers")
        chosen = choose_layers(loaded, asked, documents)
    return workers.agree(chosen)


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
