"""Drafts made of a target's own layers: which, what of them learns, and what is saved."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import SmolLM3Config, SmolLM3ForCausalLM

import pard_rt
from conftest import TinyModels
from pard_rt.cli import main
from pard_rt.models.checkpoint import load
from pard_rt.training import train as train_module
from pard_rt.training.acceptance import MeasuredAcceptance
from pard_rt.training.attention import plan_blocks, use_chain_attention
from pard_rt.training.checkpoint import save_checkpoint
from pard_rt.training.documents import Document, Likely, Pack
from pard_rt.training.loop import Schedule
from pard_rt.training.loss import MaskPredictionLoss, by_subtask
from pard_rt.training.mask_prediction import MaskPrediction, draw_rows
from pard_rt.training.pruned import MaskRow, choose_layers, freeze_embeddings, keep_layers
from pard_rt.training.train import train
from tiny_models import make_tokenizer

TEXT = "the cat and the hat, the cat on the mat; " * 30
QUICK: Any = {
    "max_length": 60,
    "tokens_per_step": 120,
    "learning_rate": 1e-3,
    "dtype": torch.float32,
    "log": lambda _: None,
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 3)
    return file


@pytest.fixture
def target(tiny_models: TinyModels) -> Path:
    return tiny_models.checkpoint("llama", seed=9, num_hidden_layers=4)


def test_layers_that_say_least_are_left_out(target: Path) -> None:
    loaded = load(target)
    layers = list(loaded.module.base_model.layers)
    idle = layers[2]
    with torch.no_grad():  # a layer that adds nothing
        idle.self_attn.o_proj.weight.zero_()
        idle.mlp.down_proj.weight.zero_()
    ids = loaded.module.generate(
        torch.tensor([[40]]), max_new_tokens=60, do_sample=False, eos_token_id=None
    )
    documents = [Document(ids[0], torch.ones(len(ids[0]), dtype=torch.bool))]  # its own words
    whole = loaded.module(input_ids=ids).logits
    assert keep_layers(loaded, choose_layers(loaded, 3, documents)) == [0, 1, 3]
    assert loaded.module.config.num_hidden_layers == 3
    torch.testing.assert_close(loaded.module(input_ids=ids).logits, whole)
    cached = loaded.module(input_ids=ids, use_cache=True)  # layers are numbered anew
    assert len(cached.past_key_values) == 3


def test_named_layers_stay(target: Path) -> None:
    loaded = load(target)
    layers = list(loaded.module.base_model.layers)
    for wrong in ((), (0, 7), (-1,)):
        with pytest.raises(pard_rt.InvalidArgumentError, match="cannot have these layers"):
            keep_layers(loaded, wrong)
    for count in (0, 5):
        with pytest.raises(pard_rt.InvalidArgumentError, match="cannot have these layers"):
            choose_layers(loaded, count, [])
    assert keep_layers(loaded, (3, 0)) == [0, 3]
    assert list(loaded.module.base_model.layers) == [layers[0], layers[3]]


@pytest.mark.parametrize("tied", [False, True])
def test_layers_that_differ_are_saved_as_they_are(tied: bool, tmp_path: Path) -> None:
    """SmolLM3 rotates in some layers only, which its configuration lists one by one."""
    torch.manual_seed(0)
    config = SmolLM3Config(
        vocab_size=288, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, no_rope_layers=[1, 1, 0, 1],
        pad_token_id=0, bos_token_id=None, eos_token_id=None, tie_word_embeddings=tied,
    )  # fmt: skip
    make_tokenizer().save_pretrained(tmp_path / "base")
    SmolLM3ForCausalLM(config).save_pretrained(tmp_path / "base")
    loaded = load(tmp_path / "base")
    keep_layers(loaded, (0, 2))
    freeze_embeddings(loaded.module, 5)
    with torch.no_grad():
        loaded.module.get_input_embeddings().row += 0.1
    ids = torch.arange(40, 60)[None]
    save_checkpoint(loaded, torch.float32, 5, "", tmp_path)
    loaded.module.eval()
    again = load(tmp_path).module.eval()
    torch.testing.assert_close(again(input_ids=ids).logits, loaded.module(input_ids=ids).logits)


def test_a_tied_head_learns_the_mask_tokens_row(tiny_models: TinyModels) -> None:
    """Or a draft would come to propose its mask token, whose row grows as it is read."""
    module = load(tiny_models.checkpoint("qwen3", seed=3)).module
    freeze_embeddings(module, 5)
    use_chain_attention(module)
    pack = Pack(torch.arange(40, 60), torch.ones(20, dtype=torch.bool), [20])
    of = MaskPredictionLoss(module, MaskPrediction(1), 5)  # no mask token is read
    row = module.get_input_embeddings().row
    for loss in of(pack, torch.Generator()):
        loss.backward()
    before = total(of(pack, torch.Generator()))
    with torch.no_grad():
        row -= row.grad
    assert total(of(pack, torch.Generator())) < before


@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_of_a_frozen_embedding_one_row_is_learnt(
    architecture: str, tiny_models: TinyModels
) -> None:
    module = load(tiny_models.checkpoint(architecture, seed=3)).module
    embedding, ids = module.get_input_embeddings(), torch.arange(8)
    before = embedding(ids).detach()
    row = MaskRow(embedding, token=5)
    torch.testing.assert_close(row(ids), before)
    row(ids).sum().backward()  # type: ignore[no-untyped-call]
    assert embedding.weight.grad is None
    assert row.row.grad is not None
    with torch.no_grad():
        row.row += 1
    after = row(ids)
    torch.testing.assert_close(row.merged()(ids), after)
    assert (after != before).any(dim=1).tolist() == [number == 5 for number in range(8)]


def test_a_draft_of_the_targets_layers(target: Path, text: Path, tmp_path: Path) -> None:
    done = train(target, [text], tmp_path / "draft", layers=2, heal=0.5, target=target, **QUICK)
    base, draft = (
        load_file(target / "model.safetensors"),
        load_file(done.folder / "model.safetensors"),
    )
    assert len({name for name in draft if ".layers." in name}) == 9 * 2
    same = torch.ones(len(base["lm_head.weight"]), dtype=torch.bool)
    assert torch.equal(draft["lm_head.weight"], base["lm_head.weight"])
    same[done.mask_token_id] = False
    embedding = "model.embed_tokens.weight"
    assert torch.equal((draft[embedding] == base[embedding]).all(dim=1), same)
    state = torch.load(done.folder / "training.pt")["module"]
    assert not any("embedding" in name or "lm_head" in name for name in state)
    generator = pard_rt.Generator(target, done.folder, num_speculative_tokens=3)
    plain = pard_rt.Generator(target)
    prompt = "the cat and"
    assert generator.generate(prompt, max_new_tokens=20).token_ids == (
        plain.generate(prompt, max_new_tokens=20).token_ids
    )
    assert "embedding and LM head frozen" in (done.folder / "README.md").read_text()


def test_it_resumes_where_it_was_cut(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> dict[str, torch.Tensor]:
        done = train(target, [text], tmp_path / name, layers=2, epochs=2, save_every=0, **QUICK)
        return load_file(done.folder / "model.safetensors")

    unbroken = run("unbroken")
    real = train_module.Trainer.save

    def save(trainer: Any) -> None:
        real(trainer)
        if trainer.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train_module.Trainer, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run("broken")
    broken = run("broken")
    assert all(torch.equal(unbroken[name], broken[name]) for name in unbroken)


def test_the_best_draft_is_kept(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text.write_text(TEXT * 10)
    worths = chain([1.0, 1.5, 2.5], repeat(2.0))  # before training, and at steps 20, 40, ..
    saved: list[Path] = []
    records: list[dict[str, Any]] = []

    class Scripted:
        def __init__(self, target: Any, *_: object) -> None:
            self._name = target.info.name

        def __call__(self) -> MeasuredAcceptance:
            return MeasuredAcceptance(self._name, 8, next(worths), [0.5])

    real = train_module.save_checkpoint

    def save(*arguments: Any) -> None:
        saved.append(arguments[-1])
        real(*arguments)

    monkeypatch.setattr(train_module, "Acceptance", Scripted)
    monkeypatch.setattr(train_module, "save_checkpoint", save)
    options: Any = {**QUICK, "tokens_per_step": 160, "measure_every": 20, "on_log": records.append}
    options |= {"target": target, "layers": 1, "max_length": 80}
    done = train(target, [text], tmp_path / "draft", epochs=1, **options)
    assert [record["tokens_per_round"] for record in records[:3]] == [1.5, 2.5, 2.0]
    assert len(saved) == 2
    assert done.acceptance is not None
    assert done.acceptance.tokens_per_round == 2.5
    assert "2.50 tokens per round" in (done.folder / "README.md").read_text()
    # Begun again, it knows what it had.
    again = train(target, [text], tmp_path / "draft", epochs=1, **options)
    assert again.acceptance == done.acceptance
    assert len(saved) == 2


def test_a_lengthened_run_warms_up_again() -> None:
    schedule = Schedule(100, warmup=10)
    assert schedule.scale(50, since=50) == pytest.approx(0.1)
    assert schedule.scale(59, since=50) == pytest.approx(1.0)


def test_the_command_wants_layers(
    target: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--from-target", str(target), "--data", str(text)]
    command += ["--output", str(tmp_path / "draft"), "--tokens-per-step", "120"]
    assert main(command) == 2
    with pytest.raises(SystemExit):
        main([*command, "--layers", "all"])
    assert "such as 0,1,29, got 'all'" in capsys.readouterr().err
    assert main([*command, "--max-length", "60", "--layers", "0,3"]) == 0
    config = load(tmp_path / "draft").config
    assert config.num_hidden_layers == 2


def total(losses: Iterable[torch.Tensor]) -> float:
    return float(torch.stack(list(losses)).sum().detach())


def test_a_draft_learns_from_logits(tiny_models: TinyModels) -> None:
    """With one sure token per place, logits say what the tokens say; with nothing, neither more."""
    module = load(tiny_models.checkpoint("llama", seed=3)).module
    use_chain_attention(module)
    tokens = torch.arange(40, 60)
    learnt = torch.arange(20) > 5
    sure = Likely(tokens[learnt][:, None], torch.zeros(14, 1)).spread(learnt)
    none = Likely(tokens[learnt][:, None], torch.full((14, 1), -torch.inf)).spread(learnt)
    two = Likely(torch.tensor([[7, 9]] * 14), torch.tensor([[0.75, 0.25]] * 14).log())

    def loss(likely: Likely | None, distill: float) -> float:
        of = MaskPredictionLoss(module, MaskPrediction(3), 5, distill=distill)
        pack = Pack(tokens, learnt, [20], likely)
        return total(of(pack, torch.Generator().manual_seed(0)))

    plain = loss(None, 0.5)
    assert loss(sure, 0.5) == pytest.approx(plain)
    assert loss(none, 1.0) == pytest.approx(plain)
    other = loss(two.spread(learnt), 1.0)
    assert other != pytest.approx(plain)
    assert loss(two.spread(learnt), 0.5) == pytest.approx((plain + other) / 2)


def test_only_tokens_of_the_head_are_learnt(tiny_models: TinyModels) -> None:
    module = load(tiny_models.checkpoint("llama", seed=3)).module
    head = torch.tensor([40, 42, 43, 50, 51, 59, 70])
    tokens = torch.arange(40, 60)
    use_chain_attention(module)
    freeze_embeddings(module, 5)
    pack = Pack(tokens, torch.ones(20, dtype=torch.bool), [20])
    of = MaskPredictionLoss(module, MaskPrediction(1), 5, head_tokens=head)
    found = total(of(pack, torch.Generator()))
    rows = draw_rows([20], MaskPrediction(1), torch.Generator())
    logits = (
        module(
            input_ids=tokens[None],
            position_ids=rows.positions[None],
            blocks=plan_blocks(rows),
            use_cache=False,
        )
        .logits[0, :, head]
        .detach()
    )
    places = [n for n, token in enumerate(tokens[1:].tolist()) if token in head]
    labels = torch.searchsorted(head, tokens[1:][places])
    assert found == pytest.approx(float(cross_entropy(logits[places], labels)))
    assert by_subtask(of.measured)["subtask_loss"] == [pytest.approx(found, abs=1e-4)]
    # Of the target's likeliest tokens, too.
    likely = Likely(torch.tensor([[42, 41]] * 20), torch.tensor([[0.5, 0.5]] * 20).log())
    taught = Pack(tokens, pack.learnt, [20], likely)
    of = MaskPredictionLoss(module, MaskPrediction(1), 5, distill=1.0, head_tokens=head)
    wanted = float(-logits[places].log_softmax(-1)[:, 1].mean())
    assert total(of(taught, torch.Generator())) == pytest.approx(wanted)


def test_a_head_of_some_tokens_wants_layers(target: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(pard_rt.InvalidArgumentError, match="LM head stays as it is"):
        train(target, [text], tmp_path / "draft", head_tokens=20, **QUICK)
    done = train(target, [text], tmp_path / "draft", head_tokens=20, layers=1, **QUICK)
    assert "| tokens that are learnt | 20 |" in (done.folder / "README.md").read_text()
