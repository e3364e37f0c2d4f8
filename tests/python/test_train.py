"""Training a draft from a checkpoint: data, mask token, loss, resuming, what comes out."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import pard_rt
from conftest import TinyModels
from pard_rt.cli import main
from pard_rt.models.checkpoint import load
from pard_rt.training import loop
from pard_rt.training.attention import use_chain_attention
from pard_rt.training.documents import Pack, pack_documents, read_documents
from pard_rt.training.loss import MaskPredictionLoss
from pard_rt.training.mask_prediction import IGNORED, MaskPrediction, draw_rows
from pard_rt.training.mask_token import choose_mask_token
from pard_rt.training.train import train
from tiny_models import NUM_TOKENS, VOCAB_SIZE, make_tokenizer

TEXT = "the cat and the hat, the cat on the mat; " * 30


def write_lines(file: Path, *records: Any) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_packs_hold_every_document_once(tmp_path: Path) -> None:
    records = [{"text": "x" * n} for n in range(1, 40)]
    documents = read_documents(
        [write_lines(tmp_path / "data.jsonl", *records)], make_tokenizer(), max_length=25
    )
    assert max(len(document.tokens) for document in documents) == 25
    packs = pack_documents(documents, 60, seed=1)
    assert all(sum(pack.lengths) == len(pack.tokens) <= 60 for pack in packs)
    assert sum(len(pack.lengths) for pack in packs) == len(documents)
    other = pack_documents(documents, 60, seed=2)
    assert [pack.lengths for pack in packs] != [pack.lengths for pack in other]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_the_loss_is_that_of_the_definition(architecture: str, tiny_models: TinyModels) -> None:
    module = load(tiny_models.checkpoint(architecture, seed=3), dtype=torch.float64).module
    module.requires_grad_(True)
    tokens = torch.randint(NUM_TOKENS, (70,), generator=torch.Generator().manual_seed(1))
    learnt = torch.arange(70) % 7 > 2
    pack = Pack(tokens, learnt, [30, 1, 39])
    settings, mask = MaskPrediction(5), VOCAB_SIZE - 1

    rows = draw_rows(pack.lengths, settings, torch.Generator().manual_seed(2))
    module.set_attn_implementation("sdpa")
    logits = module(
        input_ids=rows.fill(tokens, mask)[None],
        position_ids=rows.positions[None],
        attention_mask=rows.visible()[None, None],
        use_cache=False,
    ).logits[0]
    labels = rows.labels(torch.where(learnt, tokens, IGNORED))
    expected = cross_entropy(logits, labels, ignore_index=IGNORED)
    gradients = torch.autograd.grad(expected, list(module.parameters()))

    use_chain_attention(module)
    of_pack = MaskPredictionLoss(module, settings, mask, tokens_per_forward=35)
    parts = list(of_pack(pack, torch.Generator().manual_seed(2)))
    assert len(parts) == 2
    loss = sum(parts[1:], parts[0])
    named = labels != IGNORED
    right = (logits.argmax(-1) == labels)[named]
    for depth in range(1, settings.num_subtasks + 1):
        rows_there = rows.depths[named] == depth
        assert of_pack.measured[1:, depth - 1].tolist() == [
            right[rows_there].sum(), rows_there.sum()
        ]  # fmt: skip
    total = float(of_pack.measured[0].sum()) / int(named.sum())
    assert total == pytest.approx(float(expected.detach()), abs=1e-6)
    # Norms of transformers compute in float32, whatever they are given.
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    for one, other in zip(
        torch.autograd.grad(loss, list(module.parameters())), gradients, strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def tokens_per_round(target: Path, draft: Path) -> float:
    generator = pard_rt.Generator(target, draft, method="pard", mask_token_id=NUM_TOKENS)
    output = generator.generate(TEXT[:60], max_new_tokens=50, eos_token_ids=[])
    return output.stats.tokens_per_round


def test_a_trained_draft_drafts(tmp_path: Path, tiny_models: TinyModels) -> None:
    data = tmp_path / "data.txt"
    data.write_text(TEXT)
    base = tiny_models.checkpoint("llama", seed=9)
    options: Any = {"max_length": 120, "tokens_per_step": 480, "learning_rate": 3e-3, "epochs": 60}
    once: Any = {"log": lambda _: None}
    target = train(base, [data], tmp_path / "target", settings=MaskPrediction(1), **options, **once)
    done = train(base, [data], tmp_path / "draft", settings=MaskPrediction(6), **options, **once)
    assert done.mask_token_id == NUM_TOKENS
    assert "that no token has" in done.mask_token_reason
    assert done.loss < 1.0
    config = json.loads((done.folder / "config.json").read_text())
    assert (config["pard_token"], config["spd_type"]) == (NUM_TOKENS, "pard")
    assert load(done.folder).facts.mask_token_id == NUM_TOKENS
    before = tokens_per_round(target.folder, base)
    assert tokens_per_round(target.folder, done.folder) > before + 1


def test_tokens_per_round_are_measured_on_held_out_documents(
    tmp_path: Path, tiny_models: TinyModels
) -> None:
    data = tmp_path / "data.txt"
    data.write_text(TEXT)
    base = tiny_models.checkpoint("llama", seed=9)
    options: Any = {"max_length": 40, "tokens_per_step": 480, "learning_rate": 3e-3, "epochs": 40}
    lines: list[str] = []
    target = train(base, [data], tmp_path / "target", settings=MaskPrediction(1), **options)
    assert target.acceptance is None
    assert "Not measured" in (target.folder / "README.md").read_text()
    done = train(
        base, [data], tmp_path / "draft", settings=MaskPrediction(6), target=target.folder,
        measure_every=40, log=lines.append, **options,
    )  # fmt: skip
    records = [json.loads(x) for x in (tmp_path / "draft/training.jsonl").read_text().splitlines()]
    measured = {r["step"]: r["tokens_per_round"] for r in records if "tokens_per_round" in r}
    assert list(measured) == [*range(40, done.steps, 40), done.steps]
    found = done.acceptance
    assert found is not None
    assert round(found.tokens_per_round, 4) == max(measured.values())
    before = float(next(x for x in lines if "before" in x).rsplit(" ", 1)[1])
    assert found.tokens_per_round > before + 0.5
    assert len(found.held) == 6
    assert all(0 < share <= 1 for share in found.held)
    card = (done.folder / "README.md").read_text()
    assert f"{found.tokens_per_round:.2f} tokens per round with target, greedy, K = 6" in card
    assert "| " + " | ".join(f"{share:.2f}" for share in found.held) + " |" in card
    again = train(
        base,
        [data],
        tmp_path / "draft",
        settings=MaskPrediction(6),
        target=target.folder,
        **options,
    )
    assert again.acceptance == found
    assert ">tokens per round with the target<" in (done.folder / "training.svg").read_text()
    with pytest.raises(pard_rt.InvalidArgumentError, match="too few documents"):
        train(base, [data], tmp_path / "o", target=base, max_length=120)
    with pytest.raises(pard_rt.Error):
        train(base, [data], tmp_path / "o", target=tmp_path, max_length=40)


def test_lines_of_a_lost_training_are_dropped(tmp_path: Path, tiny_models: TinyModels) -> None:
    data = tmp_path / "data.txt"
    data.write_text(TEXT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "training.jsonl").write_text('{"step": 20}\n{"step": 4')
    base = tiny_models.checkpoint("llama", seed=9)
    train(base, [data], tmp_path / "out", max_length=100, log=lambda _: None)
    lines = (tmp_path / "out" / "training.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]
    assert (tmp_path / "out" / "training.svg").exists()


def test_the_card_says_how_the_draft_was_made(
    tmp_path: Path, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.txt"
    data.write_text(TEXT)
    base = tiny_models.checkpoint("llama", seed=9)
    settings = MaskPrediction(3, 0.5, 0.25)
    options: Any = {"settings": settings, "max_length": 100, "learning_rate": 2e-4, "epochs": 25}
    done = train(base, [data], tmp_path / 'my "draft"', log=lambda _: None, **options)
    card = (done.folder / "README.md").read_text()
    front = card.split("---\n")[1]
    assert f'base_model: "{base.name}"' in front
    assert '# my "draft"\n' in card
    assert r'Generator("TARGET", "my \"draft\"")' in card
    for line in (
        f"| seen | {done.tokens} tokens in {done.steps} of {done.steps} steps |",
        "| K in training | 3 |",
        "| conditional drop | r 0.5, at least 0.25 |",
        f"| mask token | {done.mask_token_id}, {done.mask_token_reason} |",
        "| learning rate | 0.0002, AdamW |",
        f"| last loss | {done.loss:.3f} nats a row |",
    ):
        assert line in card
    assert "![" in card
    curves = (done.folder / "training.svg").read_text()
    assert ">accuracy<" in curves
    assert ">tokens per round with the target<" not in curves

    lines: list[str] = []
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (done.folder / "training.svg").unlink()
    again = train(base, [data], done.folder, log=lines.append, **options)
    assert again.loss == pytest.approx(done.loss, abs=1e-5)
    assert "pip install 'pard-rt[train]'" in lines[-1]
    assert "![" not in (done.folder / "README.md").read_text()


def test_a_cut_run_goes_on_to_the_weights_of_an_unbroken_one(
    tmp_path: Path, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.txt"
    data.write_text(TEXT)
    base = tiny_models.checkpoint("llama", seed=9)

    def run(folder: Path) -> dict[str, torch.Tensor]:
        train(
            base, [data], folder, max_length=64, tokens_per_step=128, epochs=2,
            learning_rate=1e-3, save_every=0, log=lambda _: None,
        )  # fmt: skip
        weights: dict[str, torch.Tensor] = load(folder).module.state_dict()
        return weights

    unbroken = run(tmp_path / "unbroken")
    real = loop.Trainer.save
    for cut in (2, 5):

        def save(trainer: loop.Trainer, cut: int = cut) -> None:
            real(trainer)
            if trainer.step == cut:
                raise KeyboardInterrupt

        monkeypatch.setattr(loop.Trainer, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken")
    monkeypatch.setattr(loop.Trainer, "save", real)
    broken = run(tmp_path / "broken")
    assert all(torch.equal(unbroken[name], broken[name]) for name in unbroken)


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = torch.nn.Linear(2, 2)
    trainer = loop.Trainer(module, loop.Schedule(3), tmp_path / "training.pt")
    trainer.save()
    before = (tmp_path / "training.pt").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(pard_rt.FolderError, match="No space left"):
        trainer.save()
    assert (tmp_path / "training.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_full_disk_at_the_end_leaves_the_state(
    tmp_path: Path, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.txt"
    data.write_text(TEXT)
    base = tiny_models.checkpoint("llama", seed=9)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("transformers.PreTrainedModel.save_pretrained", full)
        with pytest.raises(pard_rt.FolderError, match="No space left"):
            train(base, [data], tmp_path / "out", max_length=100, log=lambda _: None)
    assert not (tmp_path / "out" / "config.json").exists()
    train(base, [data], tmp_path / "out", max_length=100, log=lambda _: None)
    assert (tmp_path / "out" / "config.json").exists()


def test_weights_are_float32_in_training_and_saved_as_they_came(
    tmp_path: Path, tiny_models: TinyModels
) -> None:
    base = load(tiny_models.checkpoint("llama", seed=9))
    half = tmp_path / "half"
    base.module.to(torch.bfloat16).save_pretrained(half)
    base.tokenizer.save_pretrained(half)
    data = tmp_path / "data.txt"
    data.write_text(TEXT)
    options: Any = {"max_length": 100, "learning_rate": 1e-5, "log": lambda _: None}
    done = train(
        half, [data], tmp_path / "out", dtype=torch.bfloat16, checkpoint_layers=True, **options
    )
    state = torch.load(tmp_path / "out" / "training.pt")
    assert {weight.dtype for weight in state["module"].values()} == {torch.float32}
    assert load(done.folder).module.dtype == torch.bfloat16
    plain = train(half, [data], tmp_path / "plain", **options)
    assert done.loss == pytest.approx(plain.loss, rel=0.02)


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "training.pt"
    loop.Trainer(torch.nn.Linear(2, 2), loop.Schedule(3), file).save()
    whole = file.read_bytes()
    with pytest.raises(pard_rt.FolderError, match="no state that this training can go on from"):
        loop.Trainer(torch.nn.Linear(3, 3), loop.Schedule(3), file)
    for damaged in (whole[: len(whole) // 2], b"", b"no state"):
        file.write_bytes(damaged)
        with pytest.raises(pard_rt.FolderError, match="no state that this training can go on from"):
            loop.Trainer(torch.nn.Linear(2, 2), loop.Schedule(3), file)


def test_a_state_is_not_gone_on_from_with_other_data_or_settings(
    tmp_path: Path, tiny_models: TinyModels
) -> None:
    data = tmp_path / "data.txt"
    data.write_text(TEXT)
    base = tiny_models.checkpoint("llama", seed=9)
    same: Any = {"max_length": 100, "learning_rate": 1e-4, "log": lambda _: None}
    same["dtype"] = torch.float32
    train(base, [data], tmp_path / "out", **same)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    for change in (
        {"learning_rate": 2e-4}, {"seed": 1}, {"max_length": 90}, {"tokens_per_step": 200},
        {"settings": MaskPrediction(3)}, {"dtype": torch.bfloat16},
        {"mask_token_id": NUM_TOKENS + 1},
    ):  # fmt: skip
        with pytest.raises(pard_rt.FolderError, match="the state of another training"):
            train(base, [data], tmp_path / "out", **{**same, **change})
    data.write_text(TEXT + "!")
    with pytest.raises(pard_rt.FolderError, match="data = sha256"):
        train(base, [data], tmp_path / "out", **same)
    data.write_text(TEXT)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    longer = train(base, [data], tmp_path / "out", epochs=3, tokens_per_forward=200, **same)
    assert longer.steps == 3


def test_the_mask_token_is_one_that_no_text_has(tiny_models: TinyModels, tmp_path: Path) -> None:
    loaded = load(tiny_models.checkpoint("llama", seed=3))
    used = {5, 6}
    assert choose_mask_token(loaded, None, used)[0] == NUM_TOKENS
    assert choose_mask_token(loaded, 9, used) == (9, "as asked for")
    for bad, why in ((5, "occurs in the data"), (VOCAB_SIZE, "outside")):
        with pytest.raises(pard_rt.InvalidArgumentError, match=why):
            choose_mask_token(loaded, bad, used)
    own = load(tiny_models.checkpoint("llama", mask_token=True))
    assert choose_mask_token(own, None, used) == (own.facts.mask_token_id, "the model's own")
    full = load(tiny_models.checkpoint("llama", vocab_size=NUM_TOKENS))
    with pytest.warns(pard_rt.Notice, match="grows by a row"):
        token, reason = choose_mask_token(full, None, used)
    assert (token, "new row" in reason) == (NUM_TOKENS, True)
    assert full.module.get_input_embeddings().weight.shape[0] == NUM_TOKENS + 1


def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_models.checkpoint("llama", seed=9)
    output = tmp_path / "out"

    def refused(match: str, *data: Path, **options: Any) -> None:
        with pytest.raises(pard_rt.Error, match=match):
            train(options.pop("model", base), data, output, **{"max_length": 100, **options})
        assert not output.exists()

    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    refused("nothing to learn", write_lines(tmp_path / "empty.jsonl"))
    refused("cannot be read", tmp_path / "missing.txt")
    refused("no chat template", write_lines(tmp_path / "c.jsonl", {"messages": [{"role": "user"}]}))
    refused(r"d\.jsonl:1 is not a document", write_lines(tmp_path / "d.jsonl", {"words": 3}))
    refused("max_length is out of range", text, max_length=1000)
    refused("tokens_per_step is out of range", text, tokens_per_step=10)
    refused("tokens_per_forward is out of range", text, tokens_per_forward=0)
    refused("measure_every is out of range", text, measure_every=0)
    refused("seed is out of range", text, seed=1 << 40)
    for bad in (-3, 0, math.nan, math.inf):
        refused("epochs is out of range", text, epochs=bad)
        refused("learning_rate is out of range", text, learning_rate=bad)
    refused("PyTorch does not run", text, device="tpu")
    refused("PyTorch does not run", text, device="mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("PyTorch sees no GPU", text, device="cuda")
    refused("half of a character", write_lines(tmp_path / "e.jsonl", {"text": "a\ud800b"}))
    surrogate = {"messages": [{"role": "assistant", "content": "a\ud800b"}]}
    refused("half of a character", write_lines(tmp_path / "f.jsonl", surrogate))
    refused("occurs in the data", text, mask_token_id=ord("a") - 33)
    refused("cannot compute in float16", text, dtype=torch.float16)


def test_nothing_of_others_is_overwritten(tmp_path: Path, tiny_models: TinyModels) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_models.checkpoint("llama", seed=9), base)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    before = (base / "model.safetensors").read_bytes()
    with pytest.raises(pard_rt.FolderError, match="is also an input"):
        train(base, [text], base, max_length=100)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "README.md").write_text("mine")
    with pytest.raises(pard_rt.FolderError, match=r"in use.*got README\.md"):
        train(base, [text], foreign, max_length=100)
    assert (base / "model.safetensors").read_bytes() == before
    assert [file.name for file in foreign.iterdir()] == ["README.md"]


def test_a_run_that_diverges_stops_with_its_last_good_state(
    tmp_path: Path, tiny_models: TinyModels
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20)
    output = tmp_path / "out"
    options: Any = {"max_length": 100, "tokens_per_step": 100, "log": lambda _: None}
    base = tiny_models.checkpoint("llama", seed=9)
    with pytest.raises(pard_rt.ModelError, match="Training diverged at step"):
        train(base, [text], output, learning_rate=1e25, save_every=0.0, **options)
    assert not (output / "model.safetensors").exists()
    state = torch.load(output / "training.pt")
    assert all(bool(weight.isfinite().all()) for weight in state["module"].values())


def test_windows_are_refused(tmp_path: Path, tiny_models: TinyModels) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    window = tiny_models.checkpoint("mistral_window", seed=3)
    with pytest.raises(pard_rt.ModelError, match="sliding_window = 8"):
        train(window, [text], tmp_path / "out", max_length=100, log=lambda _: None)


def test_the_command(
    tmp_path: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    base = tiny_models.checkpoint("llama", seed=9)
    command = ["train", "--model", str(base), "--data", str(text), "--output", str(tmp_path / "o")]
    assert main([*command, "--tokens-per-step", "400"]) == 0  # by default as long as the model
    assert "mask token" in capsys.readouterr().out
    assert main([*command, "--max-length", "1000"]) == 2  # it has 128 positions
    assert "max_length is out of range" in capsys.readouterr().err
