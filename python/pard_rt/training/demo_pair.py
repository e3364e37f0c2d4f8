"""The pair of the demo, trained from nothing: `python -m pard_rt.training.demo_pair WORK`.

Stages, each resumed where it was stopped and skipped once its result is there:

    target         a Llama of 9M parameters on the standard library's source, bytes as tokens
    continuations  what the target itself writes after pieces of that source
    draft          a narrow, deep Llama of 1.5M on those continuations, a plain language model
    classic        the draft, trained on as it was: an autoregressive draft
    parallel       the classic draft, trained on through mask tokens: a parallel draft
    export         WORK/demo: target, classic and parallel as the package has them in `pard_rt/demo`

WORK holds checkpoints, losses, and the models in Hugging Face format, their weights rounded to
float16 as the folders hold them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from pard_rt.training.attention import use_chain_attention
from pard_rt.training.documents import Pack
from pard_rt.training.loop import Schedule, StepLosses, Trainer
from pard_rt.training.loss import MaskPredictionLoss
from pard_rt.training.mask_prediction import MaskPrediction
from pard_rt.training.stdlib_text import END, MASK, VOCAB_SIZE, learning_text, make_tokenizer

MAX_LENGTH = 1024
PROMPT, CONTINUATION = 96, 224  # tokens of the pieces the target continues, and of what it writes
CONTINUATIONS_PER_FILE = 128

TARGET = {"hidden_size": 320, "intermediate_size": 896, "num_hidden_layers": 7, "heads": 5}
DRAFT = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 12, "heads": 3}

Batch = Callable[[int], Tensor]  # step -> token ids [B, N]


def new_model(shape: dict[str, Any], seed: int) -> LlamaForCausalLM:
    """Make a Llama over bytes with fresh weights."""
    torch.manual_seed(seed)
    sizes = {key: value for key, value in shape.items() if key != "heads"}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["heads"],
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=None,
            **sizes,
        )
    )


def pieces_of(text: Tensor, batch_size: int, length: int) -> Batch:
    """Give random pieces of a text; which ones depends on the step alone."""

    def batch(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        starts = torch.randint(len(text) - length, (batch_size, 1), generator=generator)
        return text[starts + torch.arange(length)].long()

    return batch


def rows_of(continuations: Tensor, batch_size: int) -> Batch:
    """Give random rows of what the target wrote, [B, N] of [all, N], likewise."""

    def batch(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        return continuations[
            torch.randint(len(continuations), (batch_size,), generator=generator)
        ].long()

    return batch


def next_token_loss(model: LlamaForCausalLM, batch: Batch) -> StepLosses:
    """Plain language modelling."""

    def losses(step: int) -> list[Tensor]:
        tokens = batch(step)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        return [cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())]

    return losses


def mask_prediction_loss(
    model: LlamaForCausalLM, batch: Batch, settings: MaskPrediction | None = None
) -> StepLosses:
    """Parallel mask prediction over the texts of a batch, packed into one sequence."""
    use_chain_attention(model)
    loss = MaskPredictionLoss(model, settings or MaskPrediction(), MASK)

    def losses(step: int) -> Iterator[Tensor]:
        texts = batch(step)
        learnt = torch.ones(texts.numel(), dtype=torch.bool)
        pack = Pack(texts.flatten(), learnt, [texts.shape[1]] * len(texts))
        return loss(pack, torch.Generator().manual_seed(step))

    return losses


@torch.inference_mode()
def continue_pieces(model: LlamaForCausalLM, pieces: Tensor, temperature: float) -> Tensor:
    """Let the target write on: [B, PROMPT] to [B, PROMPT + CONTINUATION]."""
    written: Tensor = model.generate(
        pieces,
        attention_mask=torch.ones_like(pieces),
        min_new_tokens=CONTINUATION,
        max_new_tokens=CONTINUATION,
        do_sample=temperature > 0,
        **({"temperature": temperature, "top_k": 0} if temperature > 0 else {}),
        pad_token_id=END,
        cache_implementation="static",  # the default one is copied for every token
    )
    return written.to(torch.uint16)


class DemoPair:
    """The stages, over one working folder."""

    def __init__(self, work: Path, scale: float) -> None:
        self.work = work
        self.scale = scale  # of every number of steps, for a trial
        self.text = learning_text()
        work.mkdir(parents=True, exist_ok=True)

    def steps(self, count: int) -> int:
        """Scale a number of steps, or of files."""
        return max(2, round(count * self.scale))

    def target(self) -> None:
        """Train the target."""
        self._train(
            "target",
            lambda: new_model(TARGET, 1),
            next_token_loss,
            lambda: pieces_of(self.text, 8, 513),
            Schedule(self.steps(1000)),
        )

    def continuations(self) -> None:
        """Let the target write on from pieces of the text: two greedy files, then a sampled one."""
        model = LlamaForCausalLM.from_pretrained(self.work / "target", dtype=torch.float32)
        folder = self.work / "continuations"
        folder.mkdir(exist_ok=True)
        for number in range(self.steps(40)):
            file = folder / f"{number:03}.pt"
            if file.exists():
                continue
            pieces = pieces_of(self.text, CONTINUATIONS_PER_FILE, PROMPT)(1_000_000 + number)
            began = time.monotonic()
            torch.manual_seed(number)
            written = continue_pieces(model, pieces, 0.7 if number % 3 == 2 else 0.0)
            torch.save(written, file.with_suffix(".partial"))
            file.with_suffix(".partial").rename(file)
            print(f"{file.name}  {time.monotonic() - began:.0f} s", flush=True)

    def mixed(self, pieces: int, continuations: int) -> Batch:
        """Give so many pieces of the text, and so many of what the target wrote."""
        files = sorted((self.work / "continuations").glob("*.pt"))
        written = rows_of(torch.cat([torch.load(file) for file in files]), continuations)
        text = pieces_of(self.text, pieces, PROMPT + CONTINUATION)
        return lambda step: torch.cat([text(step), written(step)])

    def draft(self) -> None:
        """Train a draft as a plain language model."""
        self._train(
            "draft",
            lambda: new_model(DRAFT, 2),
            next_token_loss,
            lambda: self.mixed(2, 6),
            Schedule(self.steps(240)),
        )

    def classic(self) -> None:
        """Train the draft on as it was."""
        self._train(
            "classic",
            lambda: self._trained("draft"),
            next_token_loss,
            lambda: self.mixed(1, 3),
            Schedule(self.steps(1200), decay=0.5),
        )

    def parallel(self) -> None:
        """Turn the classic draft into a parallel one, in the end on the target's writing alone."""
        self._train(
            "parallel.begun",
            lambda: self._trained("classic", pard_token=MASK, spd_type="pard"),
            mask_prediction_loss,
            lambda: self.mixed(1, 3),
            Schedule(self.steps(3000), decay=0.5),
        )
        self._train(
            "parallel",
            lambda: self._trained("parallel.begun"),
            mask_prediction_loss,
            lambda: self.mixed(0, 4),
            Schedule(self.steps(2400), decay=0.65),
        )

    def _trained(self, name: str, **config: Any) -> LlamaForCausalLM:
        model = LlamaForCausalLM.from_pretrained(self.work / name, dtype=torch.float32)
        model.config.update(config)
        return model

    def _train(
        self,
        name: str,
        begin: Callable[[], LlamaForCausalLM],
        loss: Callable[[LlamaForCausalLM, Batch], StepLosses],
        batch: Callable[[], Batch],
        schedule: Schedule,
    ) -> None:
        if (self.work / name).exists():
            return
        model = begin()
        print(f"{name}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters")
        Trainer(model, schedule, self.work / f"{name}.pt").run(loss(model, batch()))
        partial = self.work / f"{name}.partial"
        make_tokenizer().save_pretrained(partial)
        model.half().save_pretrained(partial)  # type: ignore[no-untyped-call]
        partial.rename(self.work / name)  # its name says that it is whole

    def export(self) -> None:
        """Write the ONNX folders."""
        from pard_rt.exporter import export

        for name in ("target", "classic", "parallel"):
            export(self.work / name, self.work / "demo" / name, fp16_files=True)


STAGES = ("target", "continuations", "draft", "classic", "parallel", "export")


def main() -> None:
    """Run the stages that are asked for."""
    parser = argparse.ArgumentParser(description="Train the pair of the demo.")
    parser.add_argument("work", type=Path, help="folder for checkpoints and results")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this one")
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps, for a trial")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    pair = DemoPair(arguments.work, arguments.scale)
    for stage in arguments.stage or STAGES:
        getattr(pair, stage)()


if __name__ == "__main__":
    main()
