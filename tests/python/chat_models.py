"""Chat templates in the manner of published ones, and a tiny tokenizer and model to chat with."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tiny_models import BOS, NUM_TOKENS, make_tokenizer

# Each uses what its model's template uses of the language; they are written for these tests.
TEMPLATES = {
    "smollm2": """\
{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|open|>system
You help.<|close|>
' }}{% endif %}{{ '<|open|>' + m['role'] + '
' + m['content'] + '<|close|>' + '
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|open|>assistant
' }}{% endif %}
""",
    "llama3": """\
{{- bos_token }}
{%- if not day is defined %}
    {%- set day = strftime_now("%Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|header|>system<|headed|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Tools: yes\\n" }}
{%- endif %}
{{- "Year: " + day + "\\n" + system + "<|close|>" }}
{%- for message in messages %}
    {%- if message.role in ("user", "assistant") %}
        {{- '<|header|>' + message['role'] + '<|headed|>\\n\\n' }}
        {{- message['content'] | trim + '<|close|>' }}
    {%- else %}
        {{- '<|header|>ipython<|headed|>\\n\\n' ~ (message.content | tojson) ~ '<|close|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header|>assistant<|headed|>\\n\\n' }}
{%- endif %}
""",
    "qwen": """\
{%- if tools %}
    {{- '<|open|>system\\nCall one of:' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|close|>\\n" }}
{%- elif messages[0].role != 'system' %}
    {{- '<|open|>system\\nYou help.<|close|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content and loop.index0 < ns.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|open|>' + message.role + '\\n' + content + '<|close|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|open|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "gemma": """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set first = "" -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must alternate user/assistant/user/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<|open|>' + role + '\\n' + (first if loop.first else "") }}
    {{- message['content'] | trim }}
    {{- '<|close|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|open|>model\\n' }}
{%- endif -%}
""",
    "mistral": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system is defined %}
            {{- "[INST] " + system + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported") }}
    {%- endif %}
{%- endfor %}
""",
    "phi3": """\
{% for message in messages %}
{% if message['role'] == 'system' %}
{{ '<|open|>system\n' + message['content'] + '<|close|>\n' }}
{% elif message['role'] == 'user' %}
{{ '<|open|>user\n' + message['content'] + '<|close|>\n' }}
{% elif message['role'] == 'assistant' %}
{{ '<|open|>assistant\n' + message['content'] + '<|close|>\n' }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|open|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}
""",
    "training": """\
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|open|>' + message.content + '<|close|>' }}
        {%- continue %}
    {%- endif %}
    {%- set kept = 'outside' %}
    {% generation %}
    {%- set kept = 'inside' %}
    {{- message.content + '<|close|>' }}
    {% endgeneration %}
    {{- kept }}
{%- endfor %}
""",
}

OPEN, CLOSE = "<|open|>", "<|close|>"
CLOSE_ID = NUM_TOKENS + 1


def make_chat_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of tiny models with tokens for turns, which puts BOS before a text."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [OPEN, CLOSE, "<|header|>", "<|headed|>", "[INST]", "[/INST]"]}
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def make_chat_model(checkpoint: Path, folder: Path, *, template: str = TEMPLATES["qwen"]) -> Path:
    """Copy an untied tiny model and let it chat: its answers end with CLOSE after a while."""
    shutil.copytree(checkpoint, folder)
    make_chat_tokenizer(template).save_pretrained(folder)
    return folder


def close_instead(folder: Path, token: int) -> None:
    """Have a model say CLOSE wherever it would say `token` with a positive logit."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"][CLOSE_ID] = 1.01 * weights["lm_head.weight"][token]
    save_file(weights, file, metadata={"format": "pt"})
