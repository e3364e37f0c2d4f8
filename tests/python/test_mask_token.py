"""Which token becomes a draft's mask token, over vocabularies like those of published families."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from conftest import TinyModels
from pard_rt.errors import Notice
from pard_rt.models.checkpoint import LoadedModel, load
from pard_rt.training.mask_token import choose_mask_token
from tiny_models import BOS, EOS, NUM_TOKENS, make_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BY_ROLE = (  # like Phi-3's, names no token whole
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
)


class Family:
    """Makes models whose vocabulary ends in some tokens, with rows behind them or none."""

    def __init__(self, tiny_models: TinyModels, root: Path) -> None:
        self._tiny_models = tiny_models
        self._root = root

    def __call__(
        self,
        *special: str,
        pieces: tuple[str, ...] = (),
        template: str | None = None,
        padding: int = 0,
    ) -> LoadedModel:
        tokenizer = make_tokenizer()
        tokenizer.add_tokens(list(pieces))
        tokenizer.add_tokens(list(special), special_tokens=True)
        tokenizer.chat_template = template
        size = len(tokenizer) + padding
        folder = self._root / f"{len(list(self._root.iterdir()))}"
        shutil.copytree(self._tiny_models.checkpoint("llama", vocab_size=size), folder)
        tokenizer.save_pretrained(folder)
        return load(folder)


@pytest.fixture
def family(tiny_models: TinyModels, tmp_path: Path) -> Family:
    return Family(tiny_models, tmp_path)


def chosen(loaded: LoadedModel, used: set[int] | None = None) -> str:
    token, _ = choose_mask_token(loaded, None, used or set())
    return str(loaded.tokenizer.convert_ids_to_tokens(token))


SMOLLM = ("<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>", "<empty_output>")
WORDS = (
    "preserved",
    "\u0120reserved",
    "unused",
    "(unused",
    "dummy",
    "placeholder",
    "<preserved>",
    "[PAD]",
)


def test_smollm2_has_a_special_token_that_no_chat_uses(family: Family) -> None:
    loaded = family(*SMOLLM, pieces=WORDS, template=CHATML)
    assert chosen(loaded) == "<empty_output>"
    last = loaded.tokenizer.convert_tokens_to_ids("<empty_output>")
    assert chosen(loaded, {last}) == "<file_sep>"


def test_llama_3_has_reserved_tokens(family: Family) -> None:
    tokens = [f"<|reserved_special_token_{i}|>" for i in range(4)]
    loaded = family("<|finetune_right_pad_id|>", *tokens, "<|eom_id|>", "<|python_tag|>")
    assert chosen(loaded) == tokens[-1]
    ids = loaded.tokenizer.convert_tokens_to_ids(tokens)
    assert chosen(loaded, {ids[-1]}) == tokens[-2]


def test_gemma_has_unused_tokens(family: Family) -> None:
    loaded = family(
        "<start_of_turn>", "<end_of_turn>", pieces=("<unused0>", "<unused1>", "\u0120unused")
    )
    assert chosen(loaded) == "<unused1>"


@pytest.mark.parametrize(
    "spare",
    [
        "[unused7]",
        "<reserved_106>",
        "<|dummy_85|>",
        "<|placeholder6|>",
        "<|Reserved_3|>",
        "[PAD151665]",
    ],
)
def test_forms_that_mark_a_spare_token(spare: str, family: Family) -> None:
    assert chosen(family("<z>", pieces=(spare, *WORDS))) == spare


def test_qwen_and_phi_have_rows_of_padding(family: Family) -> None:
    loaded = family(*SMOLLM[:2], "<unused0>", template=CHATML, padding=5)
    token, reason = choose_mask_token(loaded, None, set())
    assert token == len(loaded.tokenizer)
    assert reason == "the first of 5 rows of the embedding that no token has"


def test_a_template_may_put_names_together(family: Family) -> None:
    roles = ("<|user|>", "<|system|>", "<|assistant|>", "<|end|>")
    assert chosen(family("<spare>", *roles, template=BY_ROLE)) == "<spare>"


def test_tokens_with_a_role_are_not_taken(family: Family) -> None:
    """Beginning, end and padding are all there is: the embedding grows, and a notice says so."""
    loaded = family(pieces=WORDS)
    with pytest.warns(Notice, match="grows by a row.*vLLM"):
        token, reason = choose_mask_token(loaded, None, set())
    rows = loaded.module.get_input_embeddings().weight.shape[0]
    assert token == rows - 1 == NUM_TOKENS + len(WORDS)
    assert reason == "a new row of the embedding: no id was free"
    assert token not in (BOS, EOS)


def test_an_end_token_among_the_padding_is_not_taken(family: Family) -> None:
    loaded = family(padding=3)
    object.__setattr__(loaded.facts, "eos_token_ids", (NUM_TOKENS,))
    assert choose_mask_token(loaded, None, set())[0] == NUM_TOKENS + 1
