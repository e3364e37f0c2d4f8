"""Opening models: what may name them, what is refused before any work, and how that is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import pard_rt
from conftest import TinyModels
from pard_rt import (
    Error,
    FolderError,
    Generator,
    InvalidArgumentError,
    ModelError,
    OpenOptions,
    RuntimeMissingError,
)
from pard_rt.cli import main
from pard_rt.models import find, open_model
from pard_rt.models.checkpoint import load
from tiny_models import BOS, EOS, MASK_TOKEN_ID, VOCAB_SIZE, make_model, make_tokenizer

PROMPT = "the rain in the"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", mask_token=True)


def edit(file: Path, **entries: Any) -> None:
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | entries))


def module_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


# Modules of transformers in memory.


def test_a_module_of_transformers_is_opened_as_it_is(tiny_models: TinyModels) -> None:
    folder = tiny_models.checkpoint("llama")
    module, tokenizer = module_of(folder), AutoTokenizer.from_pretrained(folder)
    expected = Generator(folder).generate(PROMPT, max_new_tokens=16)
    generator = Generator(module, tokenizer=tokenizer)
    assert generator.tokenizer is tokenizer
    assert generator.max_length == 128
    output = generator.generate(PROMPT, max_new_tokens=16)
    assert (output.text, output.token_ids) == (expected.text, expected.token_ids)


def test_changed_weights_are_the_ones_that_decode(tiny_models: TinyModels) -> None:
    folder = tiny_models.checkpoint("llama")
    module, ids = module_of(folder), AutoTokenizer.from_pretrained(folder)(PROMPT).input_ids
    with torch.no_grad():  # as merging an adapter does
        module.model.layers[1].mlp.down_proj.weight.add_(0.3)
    expected = module.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    assert (
        Generator(module).generate(ids, max_new_tokens=12).token_ids
        == expected[0, len(ids) :].tolist()
    )


def test_modules_draft_for_each_other(tiny_models: TinyModels) -> None:
    folder = tiny_models.checkpoint("llama")
    module, tokenizer = module_of(folder), AutoTokenizer.from_pretrained(folder)
    draft = pard_rt.wrap(module_of(folder), tokenizer=tokenizer, mask_token_id=MASK_TOKEN_ID)
    generator = Generator(module, draft, tokenizer=tokenizer, num_speculative_tokens=4)
    output = generator.generate(PROMPT, max_new_tokens=16)
    assert output.token_ids == Generator(folder).generate(PROMPT, max_new_tokens=16).token_ids
    assert output.stats.counts.drafted > 0


def test_without_a_tokenizer_a_module_takes_token_ids(tiny_models: TinyModels) -> None:
    generator = Generator(module_of(tiny_models.checkpoint("llama")))
    assert generator.tokenizer is None
    assert generator.generate([1, 2, 3], max_new_tokens=4).text is None
    with pytest.raises(InvalidArgumentError, match=r"no tokenizer.*tokenizer=\.\.\."):
        generator.generate(PROMPT)


def test_a_module_stays_on_its_device(tiny_models: TinyModels) -> None:
    module = module_of(tiny_models.checkpoint("llama"))
    with pytest.raises(InvalidArgumentError, match=r"device cpu, got device cuda:1"):
        Generator(module, device="cuda:1")
    assert Generator(module, device=torch.device("cpu")).generate([1], max_new_tokens=1)


def test_other_objects_are_no_models() -> None:
    with pytest.raises(InvalidArgumentError, match=r"not a model.*got dict"):
        Generator({})  # type: ignore[arg-type]


def test_the_tokenizer_of_a_folder_is_its_own(tiny_models: TinyModels) -> None:
    with pytest.raises(InvalidArgumentError, match="module in memory only"):
        Generator(tiny_models.checkpoint("llama"), tokenizer=make_tokenizer())
    folder = Generator(tiny_models.folder("llama", "gqa"))
    assert folder.tokenizer.encode(PROMPT).ids == make_tokenizer()(PROMPT).input_ids


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "Unknown device.*cuda:0.*'gpu'"),
        ({"device": "cuda:x"}, "Unknown device"),
        ({"device": None}, "Unknown device"),
        ({"device": torch.device("meta")}, "Unknown device"),
        ({"backend": "tf"}, "Unknown backend.*'tf'"),
        ({"threads": -1}, "threads is out of range"),
        ({"threads": 1.5}, "threads must be an integer"),
        ({"max_length": 0}, "max_length is out of range"),
        ({"mask_token_id": "7"}, "mask_token_id must be an integer"),
        ({"trust_remote_code": "yes"}, "trust_remote_code must be True or False"),
    ],
    ids=str,
)
def test_options_are_checked_before_anything_is_looked_for(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        OpenOptions(**options)


def test_a_card_is_named_by_its_number() -> None:
    assert (OpenOptions().device_kind, OpenOptions().device_index) == ("cpu", None)
    for device in ("cuda:1", torch.device("cuda:1")):
        options = OpenOptions(device=device)
        assert (options.device_kind, options.device_index) == ("cuda", 1)


def test_a_missing_card_is_named(checkpoint: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(RuntimeMissingError, match="PyTorch sees no GPU"):
        Generator(checkpoint, device="cuda:0")
    with pytest.raises(InvalidArgumentError, match=r"does not run.*migraphx.*pard-rt export"):
        Generator(checkpoint, device="migraphx")


def test_dtype_is_what_weights_are_loaded_in(checkpoint: Path) -> None:
    for dtype in ("bfloat16", torch.bfloat16):
        opened = open_model(checkpoint, OpenOptions(dtype=dtype))
        assert opened.loaded is not None
        assert opened.loaded.seam.dtype == torch.bfloat16


def test_a_folder_has_the_type_it_was_exported_with(tiny_models: TinyModels) -> None:
    with pytest.raises(InvalidArgumentError, match=r"ONNX folder.*no dtype.*'float16'"):
        Generator(tiny_models.folder("llama", "gqa"), dtype="float16")


def test_the_hub_is_asked_with_the_options_given(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    options = OpenOptions(revision="v2", token="secret", cache_dir="there", trust_remote_code=True)
    assert find.locate("owner/model", options) == checkpoint
    assert find.locate("owner/model") == checkpoint
    trusted, plain = asked
    assert (trusted["revision"], trusted["token"]) == ("v2", "secret")
    assert trusted["cache_dir"] == Path("there")
    assert "*.py" in trusted["allow_patterns"]
    assert "*.py" not in plain["allow_patterns"]


def test_each_side_of_a_pair_has_its_own_revision(
    monkeypatch: pytest.MonkeyPatch, tiny_models: TinyModels
) -> None:
    folder, asked = tiny_models.folder("llama", "gqa"), []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["revision"]))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    Generator("a/target", "a/draft", revision="one", draft_revision="two")
    assert asked == [("a/target", "one"), ("a/draft", "two")]


def test_a_directory_has_no_revisions(checkpoint: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"no revisions.*'v2'"):
        Generator(checkpoint, revision="v2")


# Code that comes with a checkpoint.

_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def with_code(folder: Path) -> Path:
    edit(
        folder / "config.json",
        model_type="own",
        architectures=["OwnModel"],
        auto_map={
            "AutoConfig": "own_code.OwnConfig",
            "AutoModelForCausalLM": "own_code.OwnModel",
        },
    )
    (folder / "own_code.py").write_text(_CODE)
    return folder


def test_code_of_a_checkpoint_does_not_run_unasked(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked the user"))
    with pytest.raises(ModelError, match=r"Python code.*own_code\.py.*trust_remote_code=True"):
        Generator(with_code(checkpoint))
    assert main(["generate", "--target", str(checkpoint), "y"]) == 2
    assert "own_code.py" in capsys.readouterr().err


def test_trusted_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_models: TinyModels
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    known = make_model(tmp_path / "known")
    expected = Generator(known).generate(PROMPT, max_new_tokens=8).token_ids
    generator = Generator(with_code(known), trust_remote_code=True)
    assert generator.generate(PROMPT, max_new_tokens=8).token_ids == expected


def test_code_of_a_model_that_transformers_knows_is_not_needed(checkpoint: Path) -> None:
    edit(checkpoint / "config.json", auto_map={"AutoModelForCausalLM": "modeling_llama.Llama"})
    assert load(checkpoint).facts.vocab_size == VOCAB_SIZE


def test_code_of_a_tokenizer_does_not_run_unasked(checkpoint: Path) -> None:
    edit(
        checkpoint / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": [None, "own_tokens.OwnTokenizer"]},
    )
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "vocab.json").write_text("{}")
    with pytest.raises(ModelError, match=r"Python code.*own_tokens\.py"):
        Generator(checkpoint)


# Folders that are no models.


@pytest.mark.parametrize("has_config", [True, False])
def test_an_adapter_is_refused_by_name(has_config: bool, checkpoint: Path) -> None:
    edit(checkpoint / "adapter_config.json", base_model_name_or_path="owner/base", peft_type="LORA")
    if not has_config:
        (checkpoint / "config.json").unlink()
    with pytest.raises(ModelError, match=r"an adapter.*owner/base.*merge_and_unload"):
        Generator(checkpoint)
    assert main(["info", str(checkpoint)]) == 2


# Configurations, field by field.

_TOKEN = "a token id in 0"


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("config.json", {"pard_token": "268"}, f"pard_token.*{_TOKEN}.*got '268'"),
        ("config.json", {"pard_token": True}, "pard_token"),
        ("config.json", {"pard_token": -1}, "pard_token"),
        ("config.json", {"pard_token": VOCAB_SIZE}, f"pard_token.*{VOCAB_SIZE - 1}"),
        ("config.json", {"pard_token": None, "dflash_config": "x"}, "dflash_config.*an object"),
        (
            "config.json",
            {"pard_token": None, "dflash_config": {"mask_token_id": 1.5}},
            "dflash_config.*mask_token_id.*got 1.5",
        ),
        ("config.json", {"spd_type": 3}, "spd_type.*a string"),
        ("config.json", {"eos_token_id": [[EOS]]}, "eos_token_id"),
        ("config.json", {"eos_token_id": VOCAB_SIZE}, f"eos_token_id.*{VOCAB_SIZE - 1}"),
        ("config.json", {"bos_token_id": -5}, "bos_token_id"),
        ("config.json", {"max_position_embeddings": 0}, "max_position_embeddings"),
        ("generation_config.json", {"eos_token_id": [EOS, 10**6]}, "eos_token_id.*1000000"),
        ("generation_config.json", {"eos_token_id": "</s>"}, "eos_token_id.*'</s>'"),
    ],
    ids=str,
)
def test_a_wrong_value_of_a_configuration_is_named(
    file: str, entries: dict[str, Any], message: str, checkpoint: Path
) -> None:
    edit(checkpoint / file, **entries)
    with pytest.raises(Error, match=message):
        Generator(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", '"x"', ""])
def test_a_damaged_configuration_is_refused_by_name(name: str, text: str, checkpoint: Path) -> None:
    (checkpoint / name).write_text(text)
    with pytest.raises(FolderError, match=name):
        Generator(checkpoint)


def test_end_tokens_are_those_of_both_configurations(checkpoint: Path) -> None:
    edit(checkpoint / "generation_config.json", eos_token_id=[7, BOS])
    assert load(checkpoint).facts.eos_token_ids == (7, BOS, EOS)


def test_a_generator_says_whether_it_is_exact(tiny_models: TinyModels) -> None:
    assert Generator(tiny_models.folder("llama", "gqa")).exact
    assert Generator(tiny_models.folder("llama", "gqa", "int8")).exact
    assert not Generator(tiny_models.folder("llama", "portable")).exact
