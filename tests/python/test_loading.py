"""Loading: what is read from a checkpoint, and every way a checkpoint is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models
from transformers import GenerationConfig

from pard_rt.errors import FolderError, InvalidArgumentError, ModelError
from pard_rt.models.checkpoint import load
from pard_rt.models.facts import read_mask_token, require_mask_token
from pard_rt.models.fields import Fields
from pard_rt.vocabulary import token_bytes
from tiny_models import BOS, EOS, MASK_TOKEN_ID, NUM_TOKENS, VOCAB_SIZE, make_model, make_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", mask_token=True)


def test_facts_of_a_draft(folder: Path) -> None:
    facts = load(folder).facts
    assert facts.name == "model"
    assert (facts.vocab_size, facts.num_tokens) == (VOCAB_SIZE, NUM_TOKENS)
    assert facts.mask_token_id == MASK_TOKEN_ID
    assert facts.max_length == 128
    assert (facts.bos_token_id, facts.eos_token_ids) == (BOS, (EOS,))
    assert facts.token_bytes is not None
    assert len(facts.token_bytes) == NUM_TOKENS


def test_generation_config_names_the_end_tokens(folder: Path) -> None:
    GenerationConfig(eos_token_id=[EOS, 7]).save_pretrained(folder)
    assert load(folder).facts.eos_token_ids == (EOS, 7)


def config(**entries: object) -> Fields:
    return Fields(entries.get, "config.json")


def test_mask_token_is_read_in_order() -> None:
    everything = {
        "pard_token": 1,
        "ptd_token_id": 2,
        "mask_token_id": 3,
        "dflash_config": {"mask_token_id": 4},
    }
    for expected in (1, 2, 3, 4):
        assert read_mask_token(config(**everything), 10) == expected
        del everything[next(iter(everything))]
    assert read_mask_token(config(), 10) is None


def test_mask_token_outside_the_embedding_is_refused() -> None:
    with pytest.raises(ModelError, match="pard_token"):
        read_mask_token(config(pard_token=10), 10)
    with pytest.raises(InvalidArgumentError, match="11"):
        require_mask_token(11, 10)


def test_pard2_draft_is_refused() -> None:
    with pytest.raises(ModelError, match="PARD-2"):
        read_mask_token(config(spd_type="pard2", pard_token=1), 10)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no model '"):
        load(tmp_path / "nothing")


def test_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"config\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "named"), [("clip_vision_model", "clip_vision_model"), ("t5", "encoder-decoder")]
)
def test_other_kinds_of_model_are_refused(model_type: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ModelError, match=named):
        load(tmp_path)


def test_missing_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        load(folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged"):
        load(folder)


def test_missing_shard_is_refused(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load(folder)  # a stale index beside the whole file, which counts
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="00002-of-00002"):
        load(folder)


def test_missing_tensor_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="up_proj"):
        load(folder)


def test_missing_tokenizer_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", tokenizer=False)
    with pytest.raises(ModelError, match="tokenizer"):
        load(folder)
    facts = load(folder, need_tokenizer=False).facts
    assert (facts.num_tokens, facts.token_bytes) == (VOCAB_SIZE, None)


def test_max_length_must_fit_the_model(folder: Path) -> None:
    assert load(folder, max_length=32).facts.max_length == 32
    with pytest.raises(InvalidArgumentError, match="128"):
        load(folder, max_length=129)


def test_dtype_is_chosen_by_the_caller(folder: Path) -> None:
    assert load(folder, dtype=torch.bfloat16).module.dtype == torch.bfloat16


def test_token_bytes_spell_what_the_tokenizer_decodes() -> None:
    tokenizer = make_tokenizer()
    table = token_bytes(tokenizer, NUM_TOKENS)
    text = "the ünïcode in a bottle: 瓶\n"
    assert b"".join(table[i] for i in tokenizer.encode(text)) == text.encode("utf-8")
    assert table[EOS] == table[BOS] == b""
    assert sorted(entry for entry in table if len(entry) == 1) == [bytes([b]) for b in range(256)]


def test_a_damaged_index_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for text in ("{", "[]", '{"weight_map": 3}'):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ModelError, match=r"index of the weights .* is damaged"):
            load(folder)


@pytest.mark.parametrize(("field", "value"), [("hidden_size", "wide"), ("hidden_size", 0)])
def test_a_configuration_that_makes_no_sense_is_refused(
    field: str, value: object, folder: Path
) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(ModelError):
        load(folder)


def test_a_damaged_tokenizer_is_not_taken_for_none(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer of .* cannot be read"):
        load(folder, need_tokenizer=False)


def test_added_tokens_are_spelled_as_their_decoder_spells_them() -> None:
    """Gemma's runs of spaces are added tokens, and its decoder replaces their U+2581 too."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "<0x0A>": 1}, [], byte_fallback=True))
    tokenizer.add_tokens(["\u2581\u2581"])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    assert tokenizer.decode([2, 0, 1]) == "  a\n"
    assert token_bytes(tokenizer, 3) == [b"a", b"\n", b"  "]
    level = Tokenizer(models.BPE({"a": 0}, []))
    level.add_tokens(
        ["\u0120x", "\u00e9", "  ", "\u0120 "]
    )  # the first two in the byte-level alphabet
    level.decoder = decoders.ByteLevel()
    assert token_bytes(level, 5) == [b"a", b" x", b"\xe9", b"  ", "\u0120 ".encode()]
    for i, spelled in enumerate(token_bytes(level, 5)):
        assert level.decode([i]) == spelled.decode(errors="replace")
