"""The text side of an exported folder: it tokenizes as its checkpoint does, or is refused."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from pard_rt.errors import ModelError
from pard_rt.exporter.encodings import require_same_encodings
from pard_rt.exporter.folder import new_folder, write_text_files
from pard_rt.models.checkpoint import load
from pard_rt.text import TokenText
from tiny_models import NUM_TOKENS, VOCAB_SIZE, make_model, make_tokenizer


def edit(file: Path, **entries: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | entries))


def added_tokens_decoder(checkpoint: Path) -> None:
    token = {"content": "<|call|>", "special": False, "normalized": False}
    token |= {"lstrip": False, "rstrip": False, "single_word": False}
    file = checkpoint / "tokenizer_config.json"
    edit(file, added_tokens_decoder={str(NUM_TOKENS): token})


def added_tokens(checkpoint: Path) -> None:
    edit(checkpoint / "added_tokens.json", **{"<|call|>": NUM_TOKENS})


def extra_special_tokens(checkpoint: Path) -> None:
    edit(checkpoint / "tokenizer_config.json", extra_special_tokens=["<|call|>"])


def add_prefix_space(checkpoint: Path) -> None:
    entries = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}
    edit(checkpoint / "tokenizer_config.json", **entries)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (added_tokens_decoder, "a<|call|> the rain"),
        (added_tokens, "a<|call|> the rain"),
        (extra_special_tokens, "a<|call|> the rain"),
        (add_prefix_space, "the rain"),
    ],
)
def test_a_folder_tokenizes_as_its_checkpoint(change: Any, text: str, tmp_path: Path) -> None:
    checkpoint, folder = make_model(tmp_path / "model"), tmp_path / "out"
    unchanged = AutoTokenizer.from_pretrained(checkpoint)(text)["input_ids"]
    change(checkpoint)
    expected = AutoTokenizer.from_pretrained(checkpoint)(text)["input_ids"]
    assert expected != unchanged
    loaded = load(checkpoint)
    folder.mkdir()
    write_text_files(folder, checkpoint, loaded)
    assert TokenText.of_folder(folder, loaded.facts.num_tokens).encode(text) == expected


def test_tokens_without_logits_are_compared_too(tmp_path: Path) -> None:
    checkpoint, folder = make_model(tmp_path / "model"), tmp_path / "out"
    edit(checkpoint / "added_tokens.json", **{"<|far|>": VOCAB_SIZE + 5})
    loaded = load(checkpoint)
    folder.mkdir()
    write_text_files(folder, checkpoint, loaded)
    text = TokenText.of_folder(folder, loaded.facts.num_tokens)
    assert text.tokenizer.token_to_id("<|far|>") == loaded.tokenizer("<|far|>")["input_ids"][0]


def test_what_belongs_to_a_chat_travels_along(tmp_path: Path) -> None:
    checkpoint, folder = make_model(tmp_path / "model"), tmp_path / "out"
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    edit(checkpoint / "tokenizer_config.json", chat_template=template)
    edit(checkpoint / "generation_config.json", temperature=0.25, top_p=0.5)
    folder.mkdir()
    write_text_files(folder, checkpoint, load(checkpoint))
    assert (folder / "chat_template.jinja").read_text() == template
    assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.25


def test_several_chat_templates_travel_along(tmp_path: Path) -> None:
    checkpoint, out = make_model(tmp_path / "model"), tmp_path / "out"
    templates = [{"name": name, "template": f"{name}!"} for name in ("default", "tool_use")]
    edit(checkpoint / "tokenizer_config.json", chat_template=templates)
    with new_folder(out) as folder:
        (folder / "pard_rt.json").touch()
        write_text_files(folder, checkpoint, load(checkpoint))
    assert (out / "chat_template.jinja").read_text() == "default!"
    more = out / "additional_chat_templates"
    assert (more / "tool_use.jinja").read_text() == "tool_use!"
    assert more.stat().st_mode & stat.S_IXUSR


def test_a_tokenizer_json_that_gives_other_ids_is_refused() -> None:
    tokenizer = make_tokenizer()
    written = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    require_same_encodings(written, tokenizer)
    tokenizer.add_tokens(["<|call|>"])
    with pytest.raises(ModelError, match=r"tokenize otherwise.*<\|call\|>.*PyTorch"):
        require_same_encodings(written, tokenizer)
