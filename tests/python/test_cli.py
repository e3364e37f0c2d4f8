"""The command line: what it prints, what it returns, and every way it says no."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import T5Config

from pard_rt import FolderError, ForwardItem, Generator, Model, ModelError, ModelInfo, ProbeReport
from pard_rt.cli import check as check_module
from pard_rt.cli import info as info_module
from pard_rt.cli import main, output
from pard_rt.cli.output import format_bytes
from pard_rt.cli.providers import Trial, try_provider
from pard_rt.models import OpenedModel
from pard_rt.progress import progress
from pard_rt.text import TokenText
from pard_rt.vocabulary import encode_token_bytes, token_bytes
from tiny_models import EOS, MASK_TOKEN_ID, NUM_TOKENS, make_model, make_tokenizer

FEW = ["--max-new-tokens", "12", "--threads", "1"]


@dataclass
class Pair:
    """Tiny models, in both kinds of folder, and what exporting the target said."""

    target: Path
    draft: Path
    hf_target: Path
    hf_draft: Path
    export_output: str


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads only wait for each other over models as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("cli")
    small = {"num_hidden_layers": 1}
    hf_target = make_model(root / "hf-target", **small)
    hf_draft = make_model(root / "hf-draft", seed=1, **small)  # its mask token is given below
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["export", str(hf_target), str(root / "target")]) == 0
    mask = ["--mask-token-id", str(MASK_TOKEN_ID), "--max-length", "100"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["export", str(hf_draft), str(root / "draft"), *mask]) == 0
    return Pair(root / "target", root / "draft", hf_target, hf_draft, said.getvalue())


@pytest.fixture
def copy(pair: Pair, tmp_path: Path) -> Path:
    """A target folder to damage."""
    return Path(shutil.copytree(pair.target, tmp_path / "copy"))


def edit(folder: Path, **changes: object) -> None:
    file = folder / "pard_rt.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def fails(capsys: pytest.CaptureFixture[str], arguments: list[object], *expected: str) -> str:
    """Run a command that must not do its work, and say why on stderr in one message."""
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("pard-rt: ")
    assert "\n  expected: " in message
    assert "\n  got:      " in message
    assert "Traceback" not in message
    for text in expected:
        assert text in message
    return message


def test_export_says_what_was_checked(pair: Pair) -> None:
    assert "gqa, fp32" in pair.export_output
    assert "on texts that the model wrote" in pair.export_output
    assert re.search(r"largest difference +\d[.\de-]* of the largest logit", pair.export_output)
    assert re.search(r"KL divergence +\d[.\de-]* nats", pair.export_output)
    assert "in 100.0% of the rows" in pair.export_output
    written = json.loads((pair.draft / "pard_rt.json").read_text())
    assert (written["form"], written["mask_token_id"], written["max_length"]) == (
        "gqa",
        MASK_TOKEN_ID,
        100,
    )


def test_generate(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--target", str(pair.target), "--draft", str(pair.draft), *FEW]
    assert main(["generate", "the rain", "an", *models, "--num-speculative-tokens", "4"]) == 0
    captured = capsys.readouterr()
    texts = Generator(pair.target, threads=1).generate(["the rain", "an"], max_new_tokens=12)
    assert captured.out == f"the rain{texts[0].text}\nan{texts[1].text}\n"
    line = r"-- 12 tokens, \d+ per second, \d\.\d\d tokens per round \(K = 4\)\n"
    assert re.fullmatch(line * 2, captured.err)
    assert main(["generate", "an", *models, "--method", "plain"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"an{texts[1].text}\n"
    line = r"-- 12 tokens, \d+ per second, 1\.00 tokens per round\n"
    assert re.fullmatch(line, captured.err)


def test_generate_compares(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--target", str(pair.target), "--draft", str(pair.draft), *FEW]
    sampled = ["--temperature", "0.8", "--compare"]
    assert main(["generate", "the rain", "an", *models, *sampled]) == 0
    table = capsys.readouterr().out
    assert re.search(r"plain +\d+ +1\.00x +1\.00\n", table)
    for way in ("classic drafting", "PARD"):
        for k in (2, 4, 6, 8):
            assert re.search(rf"{way}, K = {k} +\d+ +\d+\.\d\dx +\d\.\d\d\n", table)
    assert table.endswith("identical output: yes\n")


def test_generate_reads_stdin(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("the\nrain"))
    assert main(["generate", "-", "--target", str(pair.target), *FEW]) == 0
    assert capsys.readouterr().out.startswith("the\nrain")


def test_generate_says_no(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "the", "--target", pair.target]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), "utf-8"))
    fails(capsys, ["generate", "-", "--target", pair.target], "stdin", "UTF-8")
    fails(capsys, [*command, "--seed", "-1"], "seed", "-1")
    fails(capsys, [*command, "--method", "pard"], 'method "pard" needs a draft')
    fails(capsys, [*command, "--compare", *FEW], 'method "draft" needs a draft')
    fails(capsys, [*command, "--top-p", "0"], "top_p")
    fails(capsys, [*command, "--device", "tpu"], "cuda", "'tpu'")
    fails(capsys, [*command, "--draft", pair.hf_draft, "--device", "rocm"], "onnxruntime-rocm")
    fails(capsys, ["generate", "", "--target", pair.target], "prompt")


def test_export_does_not_overwrite(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["export", pair.hf_target, pair.target], "already there", "choose another name")


def test_export_refuses_what_is_no_decoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    T5Config(vocab_size=32).save_pretrained(tmp_path / "t5")
    arguments = ["export", tmp_path / "t5", tmp_path / "out"]
    fails(capsys, arguments, "not a decoder-only", "encoder-decoder (t5)")
    fails(capsys, ["check", tmp_path / "t5"], "not a decoder-only")
    assert main(["info", str(tmp_path / "t5")]) == 2  # no weights
    assert "an encoder-decoder: pard-rt cannot run it" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_info_of_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^onnxruntime +1\.\d+\.\d+  /.*libonnxruntime\.so", text, re.MULTILINE)
    assert re.search(r"^  cpu +works$", text, re.MULTILINE)
    assert re.search(r"^  rocm +not installed\n +.*pip install onnxruntime-rocm", text, re.M)
    assert re.search(r"^transformers +\d", text, re.MULTILINE)
    assert "\x1b" not in text


def test_info_of_folders(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(pair.draft), str(pair.hf_target)]) == 0
    draft, target = capsys.readouterr().out.split("\n\n")[1:]
    for pattern in (
        r"draft  ONNX folder, written by pard-rt export",
        r"form +gqa",
        r"layers +1, each with 2 KV heads of 16",
        rf"vocabulary +288 logits, {NUM_TOKENS} tokens",
        r"max_length +100",
        rf"end tokens +{EOS}",
        rf"mask token +{MASK_TOKEN_ID}: a parallel draft",
    ):
        assert re.search(pattern, draft)
    for pattern in (
        r"hf-target  Hugging Face directory",
        r"architecture +LlamaForCausalLM \(llama\)",
        r"mask token +none",
    ):
        assert re.search(pattern, target)


def test_info_of_a_builder_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decoder = {
        "filename": "model.onnx",
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_size": 16,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask"},
        "outputs": {"logits": "logits"},
    }
    model = {"type": "qwen2", "vocab_size": 64, "context_length": 32, "decoder": decoder}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": model}))
    assert main(["info", str(tmp_path)]) == 2
    assert "config_only" in capsys.readouterr().err


def test_info_goes_on_after_a_bad_path(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(tmp_path / "nothing"), str(pair.target)]) == 2
    captured = capsys.readouterr()
    assert "There is no model" in captured.err
    assert "mask token    none: not a parallel draft" in captured.out


def test_a_provider_that_is_there_but_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ModelError("it", "success", "libcudart.so.12: cannot open", "look")

    monkeypatch.setattr("pard_rt.cli.providers.OnnxModel", refuse)
    trial = try_provider("cuda")
    assert (trial.works, trial.text) == (
        False,
        "installed, but does not work\nlibcudart.so.12: cannot open",
    )
    elsewhere = info_module._describe(Trial(True, "/other/lib.so", "1.30.0"), "/lib.so")
    assert elsewhere == "works  1.30.0  /other/lib.so"


def test_check_of_a_pair(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["check", str(pair.target), str(pair.draft), "--num-speculative-tokens", "4"]
    assert main([*arguments, "--threads", "1"]) == 0
    text = capsys.readouterr().out
    for pattern in (
        rf"ok +tokenizers agree +{NUM_TOKENS} tokens\n",
        rf"ok +mask token +{MASK_TOKEN_ID}",
        r"ok +target: rows agree +the same bits in forwards of 1 to 5 rows\n",
        r"ok +target: cache rewinds",
        r"ok +draft: rows agree",
        r"ok +greedy: same text as plain +4 prompts, 256 tokens",
        r"ok +T = 0.8: same text as plain +4 prompts, 256 tokens",
        r"tokens per round +\d\.\d\d greedy, \d\.\d\d T = 0.8 \(at most 5\)",
        r"one row +\d+ us",
        r"5 rows +\d+ us, \d+\.\d\d times one row",
        r"4 proposals +\d+ us",
        r"all checks hold",
    ):
        assert re.search(pattern, text), pattern


def test_check_of_a_lone_target(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(pair.target), *FEW]) == 0
    text = capsys.readouterr().out
    assert "a made-up one proposes" in text
    assert re.search(r"ok +T = 0.8: same text as plain", text)
    assert "tokens per round" not in text


def test_check_of_hugging_face_directories(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = ["--prompt", "the rain in the", "--prompt", "a"]
    arguments = [str(pair.hf_target), str(pair.hf_draft), "--max-new-tokens", "6", *prompt]
    assert main(["check", *arguments]) == 0
    text = capsys.readouterr().out
    assert "Hugging Face directory, float32" in text
    assert "checked as an autoregressive draft" in text
    assert "--mask-token-id N" in text
    assert re.search(r"greedy: same text as plain +2 prompts", text)
    assert "random prompts" not in text
    assert "not measured: no round had room for 8 proposals" in text


def test_check_reads_token_ids(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = ["check", pair.target, pair.draft, *FEW, "--prompt-ids"]
    assert main([*map(str, pairs), "1, 2 3"]) == 0
    assert re.search(r"same text as plain +1 prompt, 12 tokens", capsys.readouterr().out)
    fails(capsys, [*pairs, "1,b"], "'1,b'", "Pass --prompt for a text")
    fails(capsys, [*pairs, ""], "at least 1")
    fails(capsys, [*pairs, "9999"], "0..287", "9999")


def test_other_tokenizer(pair: Pair, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = token_bytes(make_tokenizer(), NUM_TOKENS)
    table[70] = b"other"
    (copy / "token_bytes.bin").write_bytes(encode_token_bytes(table))
    assert main(["check", str(copy), str(pair.draft), *FEW]) == 1
    text = capsys.readouterr().out
    assert re.search(r"FAIL +tokenizers agree", text)
    assert "expected: token 70 to be 'other', as in the target" in text
    assert "Use a draft of the target's family." in text
    assert "1 of 5 checks failed" in text
    assert "cost" not in text


def test_unknown_tokenizer(pair: Pair, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("token_bytes.bin", "tokenizer.json"):
        (copy / name).unlink()
    assert main(["check", str(copy), str(pair.draft), *FEW]) == 0
    assert "cannot be compared" in capsys.readouterr().out


def test_truncated_weights(
    pair: Pair, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = copy / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-5000])
    fails(capsys, ["check", copy], "model.onnx.data", "bytes")
    checkpoint = Path(shutil.copytree(pair.hf_target, tmp_path / "cut"))
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    fails(capsys, ["check", checkpoint], "model.safetensors is damaged", "Download it again")
    fails(capsys, ["info", checkpoint], "model.safetensors is damaged")
    fails(capsys, ["export", checkpoint, tmp_path / "out"], "model.safetensors is damaged")


def test_corrupt_graph(pair: Pair, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(graph[: len(graph) // 2])
    fails(capsys, ["check", copy], "an ONNX graph", "Copy or export the folder again")
    (copy / "model.onnx").unlink()
    fails(capsys, ["check", pair.target, copy], "missing")
    (copy / "model.onnx").write_bytes(graph)
    edit(copy, num_kv_heads=4)
    fails(capsys, ["check", copy], "does not keep the contract", "[?, 4, ?, 16]", "[?, 2, ?, 16]")


@pytest.mark.parametrize("command", ["info", "check"])
def test_folders_that_are_none(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, [command, tmp_path / "nothing"], "nothing there", "Check the path")
    fails(capsys, [command, "x" * 300], "no such directory", "Check the name")
    fails(capsys, [command, "~nobody-of-that-name/model"], "Check the path")
    (tmp_path / "file").touch()
    fails(capsys, [command, tmp_path / "file"], "got:      a file")
    fails(capsys, [command, tmp_path], "pard_rt.json, genai_config.json or config.json", "file")
    (tmp_path / "config.json").write_text("[")
    fails(capsys, [command, tmp_path])
    (tmp_path / "pard_rt.json").write_text("{")
    fails(capsys, [command, tmp_path], "pard_rt.json")


def test_providers_and_numbers_out_of_range(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", pair.target]
    fails(capsys, [*command, "--device", "tpu"], "cpu, cuda, migraphx or rocm", "'tpu'")
    fails(capsys, [*command, "--device", "rocm"], "pip install onnxruntime-rocm")
    fails(capsys, ["check", pair.hf_target, "--device", "rocm"], "cpu, or cuda", "pard-rt export")
    fails(capsys, [*command, "--threads", "-1"], "-1")
    fails(capsys, [*command, "--num-speculative-tokens", "0"], "1..64")
    fails(capsys, [*command, "--num-speculative-tokens", "65"], "65")
    fails(capsys, [*command, "--max-new-tokens", "0"], "1..2147483647")
    wide = "99999999999999999999"
    fails(capsys, [*command, "--max-new-tokens", wide], wide)
    models = ["--target", pair.target, "--draft", pair.draft]
    for option in ("--threads", "--mask-token-id", "--max-length", "--seed"):
        fails(capsys, ["generate", "x", *models, option, wide], wide)


GENERATE = [sys.executable, "-m", "pard_rt", "generate", "--max-new-tokens", "8", "--threads", "1"]


def test_streams_that_are_missing_full_or_narrow() -> None:
    def run(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", f'exec "$@" {command}', "sh", *GENERATE],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    ascii_only = run("'\u00e9 = '", PYTHONIOENCODING="ascii")
    assert ascii_only.returncode == 0
    assert ascii_only.stdout.startswith("? = ")
    full = run("x >/dev/full")
    assert (full.returncode, full.stderr.count("\n")) == (2, 1)
    assert "No space left" in full.stderr
    assert run("x >&-").returncode == 0
    assert run("- <&-").returncode == 2  # an empty prompt


def test_fewer_proposals_where_they_do_not_pay(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "def ", "--adaptive", "--max-new-tokens", "8", "--threads", "1"]) == 0
    assert "(K = at most 8)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["generate", "def ", "--adaptive", "--compare"])


def test_a_folder_without_tokenizer(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "tokenizer.json").unlink()
    fails(capsys, ["check", copy, "--prompt", "the"], "a tokenizer.json", "none", "pass token ids")
    (copy / "tokenizer.json").write_text("{}")
    fails(capsys, ["check", copy, "--prompt", "the"], "a damaged one")


def no_text() -> TokenText:
    raise AssertionError("nothing to encode")


class Moody(Model):
    """Its rows depend on how many are asked for, which no kernel may do."""

    def info(self) -> ModelInfo:
        return ModelInfo(name="moody", vocab_size=11, max_length=100)

    def forward(self, batch: list[ForwardItem]) -> np.ndarray:
        rows = [
            np.roll(np.arange(11.0, dtype=np.float32), int(token) + (item.num_rows > 1))
            for item in batch
            for token in item.tokens[len(item.tokens) - item.num_rows :]
        ]
        return np.stack(rows) if rows else np.zeros((0, 11), np.float32)

    def release(self, sequence: int) -> None:
        pass


def opened_for_check(monkeypatch: pytest.MonkeyPatch, model: Model, **report: Any) -> None:
    """`pard-rt check` finds this model, and that report of its rows."""
    rows = {"row_counts": 0.0, "rewinding": 0.0, "rejected_rows": 0.0, "same_tokens": True}
    told = SimpleNamespace(**rows | {"rounding": 1e-3} | report)

    def probe(max_rows: int) -> Any:
        told.max_rows = max_rows
        return told

    opened = OpenedModel("moody", "", model, model.info(), None, (), probe, no_text, False)
    monkeypatch.setattr(check_module, "open_model", lambda *_, **__: opened)


def test_checks_that_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened_for_check(monkeypatch, Moody(), same_tokens=False)
    assert main(["check", "moody"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"FAIL +target: rows agree .*the likeliest token is another", text)
    assert re.search(r"FAIL +greedy: same text as plain +prompt 0: token \d+ is \d+, plain", text)
    assert "This is no near-tie: their logits differ by 1 of the largest logit" in text
    assert "3 of 4 checks failed" in text


def test_rows_are_not_said_to_agree_above_texts_that_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened_for_check(monkeypatch, Moody())
    assert main(["check", "moody", "--num-speculative-tokens", "5"]) == 1
    text = capsys.readouterr().out
    assert not re.search("ok +target: rows agree", text)
    assert re.search(r"note +target: rows agree +the same bits in forwards of 1 to 6 rows", text)
    assert "2 of 3 checks failed" in text


class NearTies(Moody):
    """Two tokens lead all others by far and each other by next to nothing, as rounding decides."""

    gap = 1e-6

    def forward(self, batch: list[ForwardItem]) -> np.ndarray:
        rows = [
            np.array([100.0 - self.gap * (item.num_rows > 1), 100.0 - self.gap / 2] + [0.0] * 9)
            for item in batch
            for _ in range(item.num_rows)
        ]
        return np.stack(rows).astype(np.float32) if rows else np.zeros((0, 11), np.float32)


def test_a_near_tie_is_told_from_rows_far_apart_by_its_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened_for_check(monkeypatch, model := NearTies(), row_counts=1e-6)
    model.gap = 1e-3
    assert main(["check", "ties"]) == 1
    text = capsys.readouterr().out
    greedy, sampled = text.split("greedy: same text")[1].split("T = 0.8: same text")
    for part in (greedy, sampled):
        assert "token 1 is 1, plain decoding has 0" in part or "ok" in part
    assert "The two tokens nearly tie, so rounding decided: their logits differ by 1e-05" in greedy
    assert "leads by a score of 0.0005 in its row, the round's by 0.0005" in greedy
    model.gap = 1.0
    assert main(["check", "ties"]) == 1
    assert "This is no near-tie" in capsys.readouterr().out


def test_a_model_that_throws_fails_its_checks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Moody):
        def forward(self, batch: list[ForwardItem]) -> np.ndarray:
            raise RuntimeError("out of luck")

    model = Broken()

    def probe(max_rows: int) -> ProbeReport:
        raise ModelError("it cannot be rewound", "0", "1", "export it again")

    opened = OpenedModel("broken", "", model, model.info(), None, (), probe, no_text, False)
    monkeypatch.setattr(check_module, "open_model", lambda *_, **__: opened)
    assert main(["check", "broken"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"FAIL +target: rows agree +it cannot be rewound\n +expected: 0\n", text)
    assert "out of luck" in text
    assert "3 of 3 checks failed" in text


WITHOUT_TORCH = """
import sys
import time
for name in ("torch", "transformers", "safetensors", "onnx", "onnx_ir", "onnxruntime"):
    sys.modules[name] = None
from pard_rt.cli import main
for command in sys.argv[1:]:
    print("status", main(command.split("|")))
"""


def test_onnx_folders_need_no_torch(pair: Pair) -> None:
    commands = [
        f"info|{pair.target}|{pair.hf_target}",
        "|".join(["check", str(pair.target), str(pair.draft), *FEW, "--prompt", "the"]),
        f"check|{pair.hf_target}",
        f"export|{pair.hf_target}|out",
    ]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, *commands],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert re.findall(r"^status (\d)$", done.stdout, re.MULTILINE) == ["0", "0", "2", "2"]
    assert "none: not a parallel draft" in done.stdout
    assert "pip install 'pard-rt[torch]'" in done.stderr
    assert "pip install 'pard-rt[export]'" in done.stderr


def test_as_a_program(tmp_path: Path) -> None:
    program = [sys.executable, "-W", "error", "-m", "pard_rt"]
    done = subprocess.run(
        [*program, "check", str(tmp_path / "none")], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pard-rt: There is no model '")
    with subprocess.Popen(
        [*program, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as reader_gone:
        assert reader_gone.stdout is not None
        assert reader_gone.stderr is not None
        reader_gone.stdout.close()
        assert reader_gone.wait(60) == 141
        assert reader_gone.stderr.read() == b""


def test_usage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ([], ["check"], ["export", "a"], ["export", "a", "b", "--form", "c"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert "usage: pard-rt" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert re.fullmatch(r"pard-rt \d\S+\n", capsys.readouterr().out)

    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("pard_rt.cli._run", interrupt)
    assert main(["info"]) == 130


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminals_get_colour_and_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    output.print_verdict("FAIL", "what", "why", "more")
    assert terminal.getvalue() == f"\x1b[31mFAIL\x1b[0m  {'what':<30}why\n      more\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.paint("x", "ok") == "x"

    with progress("quick"):
        pass
    assert "quick" not in terminal.getvalue()
    monkeypatch.setattr("pard_rt.progress._PROGRESS_DELAY", 0.0)
    with pytest.raises(FolderError), progress("slow"):
        raise FolderError("a", "b", "c", "d")
    assert terminal.getvalue().endswith("\rslow ... 0 s\x1b[K\r\x1b[K")


def test_progress_inside_of_progress_and_behind_text(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("pard_rt.progress._PROGRESS_DELAY", 0.0)
    monkeypatch.setattr("pard_rt.progress._PROGRESS_INTERVAL", 0.001)

    def wait_for(text: str) -> None:
        end = time.monotonic() + 60
        while not terminal.getvalue().endswith(text) and time.monotonic() < end:
            time.sleep(0.001)
        assert terminal.getvalue().endswith(text)

    with progress("outer"):
        wait_for("\router ... 0 s\x1b[K")
        with progress("inner", behind_text=True):
            wait_for("\rinner ... 0 s\x1b[K")
        wait_for("\router ... 0 s\x1b[K")
    terminal.write("once upon")
    with progress("capturing", behind_text=True):
        wait_for("\x1b7\x1b[?7l capturing ... 0 s\x1b[K\x1b[?7h\x1b8")
    assert terminal.getvalue().endswith("\x1b8\x1b[K")


def test_sizes() -> None:
    sizes = [0, 999, 1000, 421_000, 999_600, 12_340_000, 10**15]
    assert [format_bytes(size) for size in sizes] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "421 kB",
        "1.0 MB",
        "12.3 MB",
        "1000 TB",
    ]
