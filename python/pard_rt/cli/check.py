"""`pard-rt check`: what a pair promises, tried on this machine, and what it costs here."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeAlias

import numpy as np

from pard_rt._core import (
    AutoregressiveDrafter,
    Decoder,
    Drafter,
    ModelInfo,
    OnnxModel,
    ParallelDrafter,
    ProbeReport,
    SamplingParams,
)
from pard_rt.cli.output import explain, paint, print_field, print_verdict
from pard_rt.cli.perplexity import perplexity, read_text
from pard_rt.cli.trial import MadeUpDraft, Outcome, Prompt, RoundSamples, compare
from pard_rt.errors import (
    Error,
    IncompatibleModelsError,
    InvalidArgumentError,
    ModelError,
    require_range,
)
from pard_rt.migraphx import describe
from pard_rt.models import OpenedModel, OpenOptions, open_model
from pard_rt.progress import progress
from pard_rt.vocabulary import vocabulary_notice

_Texts: TypeAlias = "dict[str, Outcome | ModelError]"  # by the name of the sampling

_PROMPT_LENGTHS = (1, 7, 24, 60)
_SAMPLINGS = (
    ("greedy", SamplingParams()),
    ("T = 0.8", SamplingParams(temperature=0.8, seed=1)),
)
_TIES = "Rounding decides where two tokens nearly tie; float32 weights have the fewest near-ties."


@dataclass
class _Verdicts:
    """Counts what was printed."""

    passed: int = 0
    failed: int = 0

    def ok(self, what: str, detail: str) -> None:
        self.passed += 1
        print_verdict("ok", what, detail)

    def fail(self, what: str, detail: str, *more: str) -> None:
        self.failed += 1
        print_verdict("FAIL", what, detail, *more)


@dataclass
class _Costs:
    """Times of rounds, and how many tokens they gave."""

    plain: RoundSamples = field(default_factory=RoundSamples)
    speculative: RoundSamples = field(default_factory=RoundSamples)
    tokens_per_round: list[tuple[str, float]] = field(default_factory=list)


def run_check(arguments: argparse.Namespace) -> int:
    """Run every check that applies; 1 where one failed."""
    k = arguments.num_speculative_tokens
    require_range("--num-speculative-tokens", k, 1, 64, "8 suits most pairs.")
    require_range("--max-new-tokens", arguments.max_new_tokens, 1, 2**31 - 1)
    to_predict = None if arguments.perplexity is None else read_text(arguments.perplexity)

    def opened(path: str, is_target: bool, max_length: int | None = None) -> OpenedModel:
        with progress(f"opening {path}"):
            return open_model(
                path,
                OpenOptions(
                    device=arguments.device,
                    threads=arguments.threads,
                    dtype=arguments.dtype,
                    is_target=is_target,
                    max_length=max_length,
                    trust_remote_code=arguments.trust_remote_code,
                ),
            )

    target = opened(arguments.target, True)
    draft = None
    if arguments.draft is not None:
        draft = opened(arguments.draft, False, target.info.max_length)
    prompts = _prompts(arguments, target)
    predicted = None
    if to_predict is not None:
        with progress(f"predicting {arguments.perplexity}") as shown:
            predicted = perplexity(target, to_predict, shown)

    print_field("target", f"{paint(target.source, 'bold')}  {target.description}", width=9)
    if draft is not None:
        print_field("draft", f"{paint(draft.source, 'bold')}  {draft.description}", width=9)
    print()

    verdicts, costs = _Verdicts(), _Costs()
    made_up = MadeUpDraft(target.info) if draft is None else None
    drafter = _drafter(draft, made_up)
    agree = _check_tokenizers(verdicts, target, draft, drafter, k)
    rows = _try_rows(target, k)
    texts = _decode(costs, target, drafter, made_up, prompts, k) if agree else {}
    _show_rows(verdicts, "target", rows, texts)
    _note_migraphx("target", target)
    if draft is not None:
        _show_rows(verdicts, "draft", _try_rows(draft, k), None)
        _note_migraphx("draft", draft)
    _show_texts(verdicts, texts, prompts, rows)

    print()
    if costs.tokens_per_round:
        _print_costs(costs, k, draft, own_prompts=bool(arguments.prompt or arguments.prompt_ids))
    if predicted is not None:
        value, count = predicted
        print_field("perplexity", f"{value:.4f} over {_count(count, 'token')}", width=24)
    if verdicts.failed:
        total = verdicts.passed + verdicts.failed
        print(paint(f"{verdicts.failed} of {total} checks failed", "FAIL"))
        return 1
    print(paint("all checks hold", "ok"))
    return 0


def _prompts(arguments: argparse.Namespace, target: OpenedModel) -> list[Prompt]:
    eos = target.eos_token_ids
    if arguments.prompt is not None:
        text = target.text()
        texts = [text.encode(prompt) for prompt in arguments.prompt]
    elif arguments.prompt_ids is not None:
        texts = [_parse_ids(text) for text in arguments.prompt_ids]
    else:  # random ids, and no end: what is compared is tokens, not their sense
        eos = ()
        random = np.random.default_rng(0)
        high = _num_tokens(target.info)
        longest = max(1, target.info.max_length - arguments.max_new_tokens)
        texts = [random.integers(high, size=min(n, longest)).tolist() for n in _PROMPT_LENGTHS]
    return [Prompt(tokens, arguments.max_new_tokens, eos) for tokens in texts]


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise InvalidArgumentError(
            "--prompt-ids cannot be read",
            "token ids like 1,2,3",
            repr(text),
            "Pass --prompt for a text.",
        ) from error


def _num_tokens(info: ModelInfo) -> int:
    return info.vocab_size if info.num_tokens is None else info.num_tokens


def _drafter(draft: OpenedModel | None, made_up: MadeUpDraft | None) -> Drafter | Error:
    """Make what proposes tokens: the draft as its mask token says, or one made up."""
    if draft is None:
        assert made_up is not None
        return AutoregressiveDrafter(made_up)
    if draft.mask_token_id is None:
        return AutoregressiveDrafter(draft.model)
    try:
        return ParallelDrafter(draft.model, draft.mask_token_id)
    except IncompatibleModelsError as error:
        return error


def _check_tokenizers(
    verdicts: _Verdicts,
    target: OpenedModel,
    draft: OpenedModel | None,
    drafter: Drafter | Error,
    k: int,
) -> bool:
    what = "tokenizers agree"
    try:
        if isinstance(drafter, Error):
            raise drafter
        Decoder(target.model, drafter, num_speculative_tokens=k)
    except IncompatibleModelsError as error:
        verdicts.fail(what, error.problem, *explain(error))
        return False
    if draft is None:
        print_verdict("note", "no draft", "a made-up one proposes, right three times of four")
        return True
    notice = vocabulary_notice(target.info, draft.info)
    if notice is None:
        verdicts.ok(what, f"{_num_tokens(target.info)} tokens")
    else:
        print_verdict("note", "tokenizers", notice.what, *notice.details)
    if draft.mask_token_id is None:
        print_verdict(
            "note",
            "draft without mask token",
            "checked as an autoregressive draft",
            "If it is a parallel one: pard-rt export --mask-token-id N, or pard_token in its "
            "config.json.",
        )
    else:
        verdicts.ok("mask token", f"{draft.mask_token_id}, in the draft's embedding")
    return True


def _try_rows(model: OpenedModel, k: int) -> ProbeReport | ModelError:
    """Try every number of rows that a round of up to K proposals has."""
    try:
        with progress(f"trying {model.source}"):
            return model.probe(k + 1)
    except ModelError as error:
        return error


def _show_rows(
    verdicts: _Verdicts, role: str, rows: ProbeReport | ModelError, texts: _Texts | None
) -> None:
    """Tell how alike rows are; a draft's (without `texts`) may differ, since it only proposes."""
    what = f"{role}: rows agree"
    if isinstance(rows, ModelError):
        verdicts.fail(what, rows.problem, *explain(rows))
        return
    if rows.max_rows == 0:
        print_verdict("note", what, "not tried: its max_length leaves no room for a round")
        return
    apart = max(rows.row_counts, rows.rejected_rows)
    within = f"within {apart:.1g} of the largest logit" if apart else "the same bits"
    detail = f"{within} in forwards of 1 to {rows.max_rows} rows"
    if texts is not None and not rows.same_tokens:
        verdicts.fail(what, f"{detail}, but the likeliest token is another", _TIES)
    elif any(isinstance(text, Outcome) and text.difference for text in (texts or {}).values()):
        print_verdict("note", what, f"{detail} of a short trial, but not in the texts below")
    else:
        verdicts.ok(what, detail)
    verdicts.ok(f"{role}: cache rewinds", f"within {rows.rewinding:.1g}")


def _note_migraphx(role: str, model: OpenedModel) -> None:
    if isinstance(model.model, OnnxModel) and model.model.contract.form == "portable":
        print_verdict("note", f"{role}: on MIGraphX", *describe(Path(model.source)).splitlines())


def _decode(
    costs: _Costs,
    target: OpenedModel,
    drafter: Drafter | Error,
    made_up: MadeUpDraft | None,
    prompts: list[Prompt],
    k: int,
) -> _Texts:
    """Decode the prompts with and without the draft; a model that fails is told of later."""
    assert not isinstance(drafter, Error)
    texts: _Texts = {}
    for name, sampling in _SAMPLINGS:
        samples = (costs.plain, costs.speculative)
        try:
            with progress(f"decoding, {name}"):
                text = compare(target.model, drafter, made_up, prompts, sampling, k, *samples)
        except ModelError as error:
            texts[name] = error
            continue
        costs.tokens_per_round.append((name, text.tokens_per_round))
        texts[name] = text
    return texts


def _show_texts(
    verdicts: _Verdicts, texts: _Texts, prompts: list[Prompt], rows: ProbeReport | ModelError
) -> None:
    rounding = 0.0 if isinstance(rows, ModelError) else rows.rounding
    for name, text in texts.items():
        what = f"{name}: same text as plain"
        if isinstance(text, ModelError):
            verdicts.fail(what, text.problem, *explain(text))
        elif text.difference is None:
            count = f"{_count(len(prompts), 'prompt')}, {_count(text.num_tokens, 'token')}"
            verdicts.ok(what, count)
        else:
            prompt, difference = text.difference
            verdicts.fail(what, f"prompt {prompt}: {difference}", difference.explain(rounding))


def _print_costs(costs: _Costs, k: int, draft: OpenedModel | None, *, own_prompts: bool) -> None:
    def show(label: str, value: str) -> None:
        print_field(label, value, width=24)

    if draft is not None:
        each = ", ".join(f"{count:.2f} {name}" for name, count in costs.tokens_per_round)
        whose = "" if own_prompts else "\nof random prompts: give --prompt for a real number"
        show("tokens per round", f"{each} (at most {k + 1}){whose}")
    if not costs.plain.target or not costs.speculative.target:
        show("cost", f"not measured: no round had room for {k} proposals")
        return
    one = median(costs.plain.target)
    several = median(costs.speculative.target)
    show("one row", _microseconds(one))
    show(f"{k + 1} rows", f"{_microseconds(several)}, {several / one:.2f} times one row")
    if draft is not None:
        proposing = median(costs.speculative.draft)
        show(f"{k} proposals", f"{_microseconds(proposing)}, {proposing / one:.2f} times one row")
        show("pays from", f"{(several + proposing) / one:.2f} tokens per round")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} us"
