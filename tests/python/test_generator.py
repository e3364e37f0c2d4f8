"""The face: what users name, what they get back, and every way it says no."""

from __future__ import annotations

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import pard_rt
from conftest import TinyModels
from pard_rt import (
    FolderError,
    Generator,
    IncompatibleModelsError,
    InvalidArgumentError,
    ModelError,
)
from pard_rt.models.find import locate
from pard_rt.text import Reading, TokenText
from tiny_models import EOS, MASK_TOKEN_ID, NUM_TOKENS, make_tokenizer

PROMPTS = ["the rain in the", "an other thing", "x", "er\nth", "The  end"]
SAMPLED: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0.8, "seed": 7}


@pytest.fixture(scope="module")
def target(tiny_models: TinyModels) -> Path:
    return tiny_models.folder("llama", "gqa")


@pytest.fixture(scope="module")
def draft(tiny_models: TinyModels) -> Path:
    return tiny_models.folder("llama", "gqa", seed=1, mask_token=True)


@pytest.fixture(scope="module")
def generator(target: Path, draft: Path) -> Generator:
    return Generator(target, draft, threads=1)


def test_greedy_text_is_that_of_transformers(
    generator: Generator, tiny_models: TinyModels, target: Path
) -> None:
    module = AutoModelForCausalLM.from_pretrained(tiny_models.checkpoint("llama"))
    tokenizer = make_tokenizer()
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt).input_ids])
        expected = module.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        output = generator.generate(prompt, max_new_tokens=24)
        assert output.token_ids == expected.tolist()
        assert output.text == tokenizer.decode(
            output.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert output.finish_reason == ("eos" if output.token_ids[-1] == EOS else "length")


@pytest.mark.parametrize("k", [0, 1, 4, 8])
@pytest.mark.parametrize("method", ["pard", "draft"])
def test_a_seed_gives_one_text(target: Path, draft: Path, method: Any, k: int) -> None:
    plain = Generator(target, method="plain", threads=1).generate(PROMPTS, **SAMPLED)
    drafted = Generator(target, draft, method=method, num_speculative_tokens=k, threads=1)
    together = drafted.generate(PROMPTS, **SAMPLED)
    alone = [drafted.generate(prompt, **SAMPLED) for prompt in PROMPTS]
    for texts in (together, alone):
        assert [text.token_ids for text in texts] == [text.token_ids for text in plain]
        assert all(text.seed == 7 for text in texts)


def test_seeds_are_fresh_unless_given(generator: Generator) -> None:
    first, second = (generator.generate("the", temperature=2.0) for _ in range(2))
    assert first.token_ids != second.token_ids
    several = generator.generate(["the"] * 3, temperature=2.0)
    assert len({tuple(output.token_ids) for output in several}) == 3
    again = generator.generate("the", temperature=2.0, seed=first.seed)
    assert again.token_ids == first.token_ids


def test_prompts_are_texts_or_token_ids(generator: Generator) -> None:
    ids = make_tokenizer()("the rain").input_ids
    expected = generator.generate("the rain", max_new_tokens=8).token_ids
    for same in (ids, tuple(ids), np.array(ids), torch.tensor(ids)):
        assert generator.generate(same, max_new_tokens=8).token_ids == expected
    outputs = generator.generate(["the rain", ids, np.array(ids)], max_new_tokens=8)
    assert [output.token_ids for output in outputs] == [expected] * 3
    assert generator.generate([]) == []
    for wrong in ({"input_ids": ids}, make_tokenizer()("the rain"), None, 7, b"the", iter(ids)):
        with pytest.raises(InvalidArgumentError, match=r"prompt cannot be read.*input_ids"):
            generator.generate(wrong)  # type: ignore[call-overload]
    with pytest.raises(InvalidArgumentError, match="prompt cannot be read"):
        generator.stream(["the", "rain"])  # type: ignore[arg-type]


def test_stop_tokens_and_ends(generator: Generator) -> None:
    text = generator.generate("the", max_new_tokens=16, eos_token_ids=[])
    token = text.token_ids[5]
    first = text.token_ids.index(token)
    stopped = generator.generate("the", max_new_tokens=16, stop_token_ids=[token])
    assert stopped.token_ids == text.token_ids[: first + 1]
    assert stopped.finish_reason == "stop"
    ended = generator.generate("the", max_new_tokens=16, eos_token_ids=[token])
    assert (ended.token_ids, ended.finish_reason) == (stopped.token_ids, "eos")


@pytest.mark.parametrize("k", [0, 1, 8])
def test_a_text_ends_before_a_stop_string(target: Path, draft: Path, k: int) -> None:
    generator = Generator(target, draft, num_speculative_tokens=k, threads=1)
    whole = generator.generate(PROMPTS, **SAMPLED)
    for prompt, full in zip(PROMPTS, whole, strict=True):
        assert full.text is not None
        stop = full.text[7:10]
        output = generator.generate(prompt, **SAMPLED, stop=["never, ever", stop])
        assert output.text == full.text[: full.text.index(stop)]
        assert output.finish_reason == "stop"
        n = len(output.token_ids)
        assert output.token_ids == full.token_ids[:n]
        reading = Reading(generator._spelling())
        for token in output.token_ids[:-1]:
            reading = reading.read(token, is_last=False)
        assert stop not in reading.sure
        assert stop in reading.read(output.token_ids[-1], is_last=False).sure
        stream = generator.stream(prompt, **SAMPLED, stop=stop)
        pieces = list(stream)
        assert [piece.token_id for piece in pieces] == output.token_ids
        assert "".join(map(str, pieces)) == stream.output.text == output.text
        assert stream.output.finish_reason == "stop"
    texts = generator.generate(PROMPTS, **SAMPLED, stop=whole[0].text)
    assert (texts[0].text, texts[0].finish_reason) == ("", "stop")  # at the last token of all
    assert [text.text for text in texts[1:]] == [text.text for text in whole[1:]]


def test_stats(generator: Generator) -> None:
    output = generator.generate("the", max_new_tokens=20)
    counts = output.stats.counts
    assert counts.committed == len(output.token_ids)
    assert output.stats.tokens_per_round == counts.committed / counts.rounds
    assert output.stats.tokens_per_second == counts.committed / output.stats.seconds > 0


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_stream_is_the_text(generator: Generator, temperature: float) -> None:
    options: Any = {"max_new_tokens": 60, "temperature": temperature, "seed": 3}
    expected = generator.generate("the rain", **options)
    stream = generator.stream("the rain", **options)
    pieces = list(stream)
    assert [piece.token_id for piece in pieces] == expected.token_ids
    assert "".join(map(str, pieces)) == expected.text == stream.output.text
    assert stream.output.finish_reason == expected.finish_reason


def test_pieces_say_where_they_came_from(target: Path) -> None:
    perfect = Generator(target, target, method="draft", num_speculative_tokens=3, threads=1)
    stream = perfect.stream("the rain", max_new_tokens=14, eos_token_ids=[])
    pieces = list(stream)
    counts = stream.output.stats.counts
    assert sum(piece.from_draft for piece in pieces) == counts.accepted > 0
    assert sum(not piece.from_draft for piece in pieces) == counts.rounds
    assert not pieces[0].from_draft


def test_more_prompts_than_are_decoded_at_a_time(generator: Generator) -> None:
    prompts = [f"{i} the rain" for i in range(20)]
    together = generator.generate(prompts, max_new_tokens=6)
    alone = [generator.generate(prompt, max_new_tokens=6) for prompt in prompts]
    assert [output.token_ids for output in together] == [output.token_ids for output in alone]


def test_threads_share_a_generator(generator: Generator) -> None:
    expected = {prompt: generator.generate(prompt, max_new_tokens=40).text for prompt in PROMPTS}
    with ThreadPoolExecutor(4) as pool:
        outputs = pool.map(
            lambda prompt: generator.generate(prompt, max_new_tokens=40), PROMPTS * 4
        )
    assert [output.text for output in outputs] == [expected[prompt] for prompt in PROMPTS * 4]
    assert generator.decoder.num_active == generator.decoder.num_waiting == 0


def test_pieces_come_as_rounds_publish(generator: Generator) -> None:
    stream = generator.stream("the rain", max_new_tokens=30)
    next(stream)
    assert 1 <= len(stream.output.token_ids) < 30
    assert len(stream.output.token_ids) + len(list(stream)) >= 30


def test_a_closed_or_forgotten_stream_ends_its_request(generator: Generator) -> None:
    closed = generator.stream("the rain", max_new_tokens=100)
    next(closed)
    closed.close()
    came = list(closed)
    assert closed.output.finish_reason == "cancelled"
    assert len(came) + 1 == len(closed.output.token_ids) < 100
    assert generator.decoder.num_active == 0
    kept, forgotten = (generator.stream(p, max_new_tokens=100) for p in ("the rain", "the"))
    next(kept)
    next(forgotten)
    del forgotten
    gc.collect()
    assert "".join(map(str, kept)) in (
        generator.generate("the rain", max_new_tokens=100).text or ""
    )
    assert generator.decoder.num_active == 0


def test_streams_and_texts_side_by_side(generator: Generator) -> None:
    expected = [generator.generate(prompt, max_new_tokens=20).text for prompt in PROMPTS[:2]]
    streams = [generator.stream(prompt, max_new_tokens=20) for prompt in PROMPTS[:2]]
    first = str(next(streams[0]))
    assert generator.generate(PROMPTS[1], max_new_tokens=20).text == expected[1]
    assert first + "".join(map(str, streams[0])) == expected[0]
    assert "".join(map(str, streams[1])) == expected[1]


def test_pytorch_gives_the_same_text(tiny_models: TinyModels, generator: Generator) -> None:
    target = tiny_models.checkpoint("llama")
    draft = tiny_models.checkpoint("llama", seed=1, mask_token=True)
    both = Generator(target, draft, backend="torch", num_speculative_tokens=4)
    expected = generator.generate(PROMPTS, max_new_tokens=24)
    outputs = both.generate(PROMPTS, max_new_tokens=24)
    assert [output.text for output in outputs] == [output.text for output in expected]


def test_methods(target: Path, draft: Path, tiny_models: TinyModels) -> None:
    classic = tiny_models.folder("llama", "gqa", seed=1)
    plain = Generator(target, threads=1)
    assert plain.num_speculative_tokens == 0
    assert Generator(target, draft, method="plain", threads=1).num_speculative_tokens == 0
    text = plain.generate("the rain").text
    for draft_folder, method in ((classic, "auto"), (classic, "draft"), (draft, "draft")):
        other = plain.with_method(method, draft_folder, num_speculative_tokens=3)
        output = other.generate("the rain")
        assert (output.text, other.num_speculative_tokens) == (text, 3)
        assert output.stats.counts.drafted > 0
    masked = plain.with_method("pard", classic, mask_token_id=MASK_TOKEN_ID)
    assert masked.generate("the rain").text == text
    masked.num_speculative_tokens = 2
    assert masked.generate("the rain").text == text


def test_what_does_not_fit_is_refused(
    target: Path, draft: Path, tiny_models: TinyModels, tmp_path: Path
) -> None:
    classic = tiny_models.folder("llama", "gqa", seed=1)
    hf = tiny_models.checkpoint("llama")
    with pytest.raises(InvalidArgumentError, match='method "pard" needs a draft'):
        Generator(tmp_path / "nothing, and not looked at", method="pard")
    with pytest.raises(IncompatibleModelsError, match=r"no parallel draft.*mask_token_id"):
        Generator(target, classic, method="pard")
    for argument in ("method", "device", "backend"):
        with pytest.raises(InvalidArgumentError, match=rf"Unknown {argument}.*'fast'"):
            Generator(target, draft, **{argument: "fast"})  # type: ignore[arg-type]
    with pytest.raises(
        InvalidArgumentError, match=r"does not run in the backend onnx.*pard-rt exp"
    ):
        Generator(hf, backend="onnx")
    with pytest.raises(InvalidArgumentError, match="does not run in the backend torch"):
        Generator(target, backend="torch")
    with pytest.raises(InvalidArgumentError, match="PyTorch does not run models on this device"):
        Generator(hf, device="migraphx")
    with pytest.raises(InvalidArgumentError, match=r"0\.\.64"):
        Generator(target, draft, num_speculative_tokens=65)
    with pytest.raises(InvalidArgumentError, match="mask token is a parallel draft's"):
        Generator(target, mask_token_id=3)
    with pytest.raises(InvalidArgumentError, match="max_length"):
        Generator(target, max_length=4096)
    with pytest.raises(IncompatibleModelsError, match="mask"):
        Generator(target, draft, mask_token_id=100_000)
    assert (
        Generator(target, max_length=32).generate("x", max_new_tokens=99).finish_reason == "length"
    )


def test_a_draft_is_opened_for_no_longer_texts_than_its_target(tiny_models: TinyModels) -> None:
    moving = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    moving["original_max_position_embeddings"] = 64
    target = tiny_models.checkpoint("llama")
    draft = tiny_models.checkpoint("llama", seed=1, mask_token=True, rope_parameters=moving)
    with pytest.raises(ModelError, match=r"changes beyond 64 positions.*got 128"):
        Generator(target, draft)
    short = Generator(target, draft, max_length=64)
    expected = Generator(target, max_length=64).generate("the rain", max_new_tokens=99)
    for drafting in (short, short.with_method("draft", draft)):
        output = drafting.generate("the rain", max_new_tokens=99)
        assert output.token_ids == expected.token_ids
        assert output.stats.counts.drafted > 0


@pytest.mark.parametrize("kind", ["torch", "onnx", "wrapped"])
def test_a_draft_with_fewer_positions_than_its_target_drafts_up_to_there(
    kind: str, tiny_models: TinyModels
) -> None:
    options: Any = {"seed": 1, "mask_token": True, "max_position_embeddings": 48}
    if kind == "onnx":
        target, draft = (
            tiny_models.folder("llama", "gqa"),
            tiny_models.folder("llama", "gqa", **options),
        )
    else:
        target, draft = tiny_models.checkpoint("llama"), tiny_models.checkpoint("llama", **options)
    source: Any = pard_rt.load(draft) if kind == "wrapped" else draft
    generator = Generator(target, source, num_speculative_tokens=4)
    expected = Generator(target).generate("the rain", max_new_tokens=80, eos_token_ids=[])
    output = generator.generate("the rain", max_new_tokens=80, eos_token_ids=[])
    assert output.token_ids == expected.token_ids
    assert 0 < output.stats.counts.drafted < 4 * 48


def test_bad_requests_leave_nothing_behind(generator: Generator) -> None:
    for prompt, options, match in (
        ("", {}, "prompt"),
        ([1, 9999], {}, "9999"),
        (["the", [-1]], {}, r"prompt\[0\]"),
        ([[1, 2], [[3]]], {}, "flat list"),
        ("x" * 500, {}, "prompt"),
        ("the \udcff", {}, "Unicode"),
        ("the", {"seed": -1}, "seed"),
    ):
        with pytest.raises(InvalidArgumentError, match=match):
            generator.generate(prompt, **options)  # type: ignore[call-overload]
    generator.generate("x", max_new_tokens=1)
    assert generator.decoder.num_active == generator.decoder.num_waiting == 0


def test_a_folder_without_tokenizer_takes_token_ids(target: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ids"
    folder.mkdir()
    for file in target.iterdir():
        if "token" not in file.name:
            (folder / file.name).symlink_to(file)
    bare = Generator(folder, threads=1)
    output = bare.generate([1, 2, 3], max_new_tokens=4)
    assert (output.text, len(output.token_ids)) == (None, 4)
    assert [piece.text for piece in bare.stream([1, 2, 3], max_new_tokens=4)] == [""] * 4
    with pytest.raises(FolderError, match=r"no tokenizer.*expected a tokenizer.json, got none"):
        bare.generate("the")
    with pytest.raises(FolderError, match="no tokenizer"):
        bare.generate([1, 2, 3], stop="the")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(FolderError, match="a damaged one"):
        Generator(folder)


def test_damaged_token_bytes(target: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to(target / "tokenizer.json")
    without = TokenText.of_folder(tmp_path, NUM_TOKENS)  # made of the tokenizer
    with_table = TokenText.of_folder(target, NUM_TOKENS)
    ids = without.encode("the end of it: → 🙂")
    for text in (without, with_table):
        assert b"".join(map(text.spell, ids)).decode() == "the end of it: → 🙂"
        specials = [text.spell_special(i).decode() for i in range(NUM_TOKENS)]
        assert specials == [""] * (NUM_TOKENS - 3) + ["<s>", "</s>", "<pad>"]
    data = (target / "token_bytes.bin").read_bytes()
    for damaged in (b"", data[:9], data[:-3], data[:4] + b"\xff" * 4 + data[8:]):
        (tmp_path / "token_bytes.bin").write_bytes(damaged)
        with pytest.raises(FolderError, match="table of tokens"):
            TokenText.of_folder(tmp_path, NUM_TOKENS)
    (tmp_path / "token_bytes.bin").write_bytes(data)
    with pytest.raises(FolderError, match=f"expected {NUM_TOKENS + 1} tokens.*got {NUM_TOKENS} "):
        TokenText.of_folder(tmp_path, NUM_TOKENS + 1)


def test_a_tokenizers_truncation_and_padding_are_training_s(target: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    expected = tokenizer.encode("the rain in the").ids
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert TokenText.of_folder(tmp_path, NUM_TOKENS).encode("the rain in the") == expected


class Hub:
    """Stands in for the hub: a folder, and what was asked of it."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.asked: list[str] = []

    def __call__(
        self,
        name: str,
        *,
        revision: str | None,
        token: str | bool | None,
        cache_dir: Path | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
    ) -> str:
        assert (revision, token, cache_dir) == (None, None, None)
        self.asked.append(name)
        listing = [
            "config.json",
            "model.safetensors",
            "onnx/model.onnx",
            "consolidated.safetensors",
        ]
        wanted = filter_repo_objects(
            listing, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        assert list(wanted) in (listing[:2], [])  # the latter: older formats, where nothing came
        if self.folder is None:
            raise LocalEntryNotFoundError("offline\nand more")
        return str(self.folder)


def test_hub_ids(
    target: Path, draft: Path, monkeypatch: pytest.MonkeyPatch, tiny_models: TinyModels
) -> None:
    hub = Hub(target)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    expected = Generator(target, threads=1).generate("the").token_ids
    assert Generator("someone/a-model", threads=1).generate("the").token_ids == expected
    assert hub.asked == ["someone/a-model"]
    hub.folder = tiny_models.checkpoint("llama")
    assert Generator("someone/a-checkpoint").generate("the").token_ids == expected
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(None))
    with pytest.raises(
        FolderError, match=r"'someone/a-model' could not be found.*offline.*HF_TOKEN"
    ):
        Generator("someone/a-model")


def test_paths_are_never_sent_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    (tmp_path / "file").touch()
    for path in ("/no/such", "./no", "~/no-such-model", "a/b/c", tmp_path / "no", ""):
        with pytest.raises(FolderError, match="There is no model '"):
            locate(path)
    with pytest.raises(FolderError, match="got a file"):
        locate(tmp_path / "file")
    assert hub.asked == []


def test_a_model_that_fails_ends_its_requests(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        """A decoder whose rounds fail."""

        def __init__(self, decoder: pard_rt.Decoder) -> None:
            self.decoder = decoder

        def __getattr__(self, name: str) -> Any:
            return getattr(self.decoder, name)

        def step(self) -> bool:
            if not self.decoder.num_waiting + self.decoder.num_active:
                return self.decoder.step()
            raise ModelError("It failed", "a row", "none", "Look.")

    monkeypatch.setattr(generator._rounds, "_decoder", Broken(generator.decoder))
    with pytest.raises(ModelError, match="It failed"):
        generator.generate(PROMPTS)
    streams = [generator.stream("the") for _ in range(2)]
    for stream in streams:  # the second one never runs a round
        with pytest.raises(ModelError, match="It failed"):
            next(stream)
        assert stream.output.finish_reason == "cancelled"
    monkeypatch.undo()
    assert generator.generate("the", max_new_tokens=3).finish_reason == "length"
    assert generator.decoder.num_active == generator.decoder.num_waiting == 0


def test_an_adaptive_generator_gives_the_same_text_with_fewer_proposals() -> None:
    options: Any = {"max_new_tokens": 200, "temperature": 0.8, "seed": 3}
    generator = Generator("demo", method="draft", adaptive=True, num_speculative_tokens=3)
    output = generator.generate("def main(", **options)
    assert (
        output.token_ids
        == generator.with_method("plain").generate("def main(", **options).token_ids
    )
    drafted = output.stats.counts.drafted_at
    assert len(drafted) == 3
    assert (
        drafted[0] < output.stats.counts.rounds - 3
    )  # K = 0 was tried three times, and the prompt
    assert 0 < drafted[2] < drafted[0]


ENDLESS = """
import threading, time
import pard_rt

generator = pard_rt.Generator(threads=1, adaptive=True)
def {name}():
    while True:
        {body}
threading.Thread(target={name}, daemon=True).start()
time.sleep(1.0)
for k in range(100):
    generator.num_speculative_tokens = k % 9
"""


@pytest.mark.parametrize("body", ["generator.generate('x')", "list(generator.stream('x'))"])
def test_a_process_ends_while_a_daemon_thread_generates(body: str) -> None:
    program = ENDLESS.format(name="endless", body=body)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_method_keeps_the_draft_and_k(target: Path, draft: Path) -> None:
    generator = Generator(target, draft, num_speculative_tokens=3, threads=1)
    for other in (
        generator.with_method("pard"),
        generator.with_method("plain").with_method("pard"),
    ):
        assert other.num_speculative_tokens == 3
        output, expected = (each.generate("the", max_new_tokens=20) for each in (other, generator))
        assert output.token_ids == expected.token_ids
        assert output.stats.counts.drafted == expected.stats.counts.drafted > 0
    assert generator.with_method("draft", num_speculative_tokens=2).num_speculative_tokens == 2


def test_leaving_a_stream_s_with_ends_its_request(generator: Generator) -> None:
    with generator.stream("the", max_new_tokens=100) as stream:
        next(stream)
    assert (stream.output.finish_reason, generator.decoder.num_active) == ("cancelled", 0)


def test_arguments_of_another_type_are_refused(target: Path) -> None:
    for name in ("adaptive", "torch_compile", "trust_remote_code"):
        with pytest.raises(InvalidArgumentError, match=f"{name} must be True or False.*got 'yes'"):
            Generator(target, **{name: "yes"})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="not a model"):
        Generator(5)  # type: ignore[arg-type]
