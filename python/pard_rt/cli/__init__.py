"""The command line: `pard-rt generate`, `chat`, `export`, `train` and others (docs/cli.md).

Commands are imported when they run: only those that touch a Hugging Face directory need PyTorch.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pard_rt.cli.output import print_error, print_notice
from pard_rt.cpp import get_cmake_dir
from pard_rt.errors import Error, Notice

__all__ = ["main"]

_REGENERATE = "train regenerate"
_MODEL = "ONNX folder, HF directory, GGUF file or hub id"
_EXIT_STATUS = (
    "exit status: 0 all is well, 1 a check failed, 2 the command could not do its work "
    "(its message says why), 130 interrupted"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        Its arguments; those of the process by default.

    Returns
    -------
    int
        The exit status: 0, 1 where a check failed, 2 where the command could not do its work.

    Raises
    ------
    SystemExit
        argparse's: after a usage error (2), ``--help`` and ``--version``.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:2] == _REGENERATE.split():  # one command to argparse: `train` has options of its own
        given[:2] = [_REGENERATE]
    _prepare_streams()
    arguments = _parser().parse_args(given)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            status = _run_or_say_why(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `pard-rt info | head`
        _settle_stdout()
        return 141
    except OSError as error:
        _settle_stdout()
        print(f"pard-rt: {error}", file=sys.stderr)
        return 2
    return status


def _prepare_streams() -> None:
    """Have all three streams, and a character that stdout cannot encode not end the command."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _settle_stdout() -> None:
    """Write what is still buffered, or drop it where it cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_or_say_why(arguments: argparse.Namespace) -> int:
    try:
        return _run(arguments)
    except Error as error:
        sys.stdout.flush()
        print_error(error)
        return 2


def _show_warning(otherwise: Callable[..., None], message: Any, *more: Any, **names: Any) -> None:
    if isinstance(message, Notice):
        print_notice(message)
    else:
        otherwise(message, *more, **names)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "generate":
        from pard_rt.cli.generate import run_generate

        return run_generate(arguments)
    if arguments.command == "chat":
        from pard_rt.cli.chat import run_chat

        return run_chat(arguments)
    if arguments.command == "export":
        from pard_rt.cli.export import run_export

        return run_export(arguments)
    if arguments.command == "train":
        from pard_rt.cli.train import run_train

        return run_train(arguments)
    if arguments.command == _REGENERATE:
        from pard_rt.cli.regenerate import run_regenerate

        return run_regenerate(arguments)
    if arguments.command == "info":
        if arguments.cmake_dir:
            print(get_cmake_dir())
            return 0
        from pard_rt.cli.info import run_info

        return run_info(arguments.paths)
    if arguments.command == "cache":
        from pard_rt.cli.cache import run_cache

        return run_cache(arguments)
    from pard_rt.cli.check import run_check

    return run_check(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pard-rt",
        description="Lossless parallel-draft speculative decoding.",
        epilog=_EXIT_STATUS,
    )
    parser.add_argument("--version", action="version", version=f"pard-rt {version('pard-rt')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands.add_parser("generate", help="write on from a prompt"))
    _add_chat(commands.add_parser("chat", help="talk with a model"))
    _add_export(commands.add_parser("export", help="write a model as an ONNX folder"))
    _add_train(commands.add_parser("train", help="make a parallel draft of a small model"))
    _add_regenerate(commands.add_parser(_REGENERATE, help="have the target write what it learns"))
    _add_info(commands.add_parser("info", help="say what is installed, and what folders are"))
    _add_check(commands.add_parser("check", help="try a model or a pair, and say what it costs"))
    _add_cache(commands.add_parser("cache", help="list or remove converted GGUF files"))
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write on from prompts with a target and its draft, by default the small model of Python "
        "source code that comes with the package. On a terminal, what the draft gave is green."
    )
    parser.epilog = _EXIT_STATUS
    parser.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help="text; '-' reads it from stdin"
    )
    parser.add_argument("--target", default="demo", metavar="T", help=_MODEL)
    ways = _add_drafting(parser, "the same; the demo has drafts of its own")
    ways.add_argument(
        "--compare",
        action="store_true",
        help="then decode the prompts plainly, with classic drafting and PARD: what each takes",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="take each prompt as a user's message, through the model's chat template",
    )
    _add_decoding(parser, max_new_tokens=128)
    _add_generating(parser)
    _add_texts(parser)
    parser.add_argument(
        "--keep-special-tokens",
        dest="skip_special_tokens",
        action="store_false",
        help="show special tokens in the text, such as <|im_end|>",
    )


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Talk with a model through its own chat template. /help lists the commands; Ctrl-C stops "
        "an answer, Ctrl-D ends the chat. On a terminal, what the draft gave is green."
    )
    parser.epilog = _EXIT_STATUS
    parser.add_argument(
        "target",
        nargs="?",
        default="demo",
        metavar="TARGET",
        help=f"{_MODEL} of a model with a chat template",
    )
    _add_drafting(parser, "the same")
    parser.add_argument("--system", metavar="TEXT", help="what the system says first")
    _add_decoding(parser, max_new_tokens=1024)
    _add_generating(parser)
    _add_texts(parser)


def _add_drafting(parser: argparse.ArgumentParser, draft: str) -> argparse._MutuallyExclusiveGroup:
    parser.add_argument("--draft", metavar="D", help=draft)
    parser.add_argument(
        "--method",
        choices=("auto", "pard", "draft", "plain"),
        default="auto",
        help="how to draft (default: auto, what the draft was made for)",
    )
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--adaptive",
        action="store_true",
        help="fewer proposals, down to none, when they do not pay; the text is the same",
    )
    return ways


def _add_texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sampling",
        choices=("model",),
        help="model: as its generation_config.json says, where no option says otherwise",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of sampling (default: a fresh one)")
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end a text before this string, special tokens included; may be given several times",
    )
    parser.add_argument(
        "--template-options",
        type=_json,
        metavar="JSON",
        help="variables of the chat template, such as '{\"enable_thinking\": false}'",
    )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error


def _add_decoding(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    parser.add_argument(
        "--num-speculative-tokens",
        type=int,
        default=8,
        metavar="K",
        help="proposals per round (default: 8)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help=f"tokens to generate after each prompt (default: {max_new_tokens})",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="threads of a forward (default: 0, one for every physical core)",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="D",
        help="cpu (default), cuda or cuda:1; for ONNX folders also migraphx or rocm",
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        metavar="T",
        help="what PyTorch loads weights in, such as bfloat16 (default: as they are)",
    )
    _add_trust(parser)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python files that come with a checkpoint; without it they never run",
    )


def _add_revision(parser: argparse.ArgumentParser, of: str) -> None:
    parser.add_argument(
        "--revision", metavar="R", help=f"branch, tag or commit of the {of} on the hub"
    )


def _add_generating(parser: argparse.ArgumentParser) -> None:
    _add_revision(parser, "target")
    parser.add_argument("--draft-revision", metavar="R", help="the same of the draft")
    # What is not given is left out: the model's own sampling may take its place.
    sampling = parser.add_argument_group("sampling", argument_default=argparse.SUPPRESS)
    sampling.add_argument("--temperature", type=float, metavar="T", help="0: greedy (default)")
    sampling.add_argument("--top-k", type=int, metavar="N", help="0: all tokens (default)")
    sampling.add_argument("--top-p", type=float, metavar="P", help="1: all tokens (default)")
    sampling.add_argument("--min-p", type=float, metavar="P", help="0: all tokens (default)")
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="most positions a sequence may have"
    )
    parser.add_argument(
        "--mask-token-id",
        type=int,
        metavar="N",
        help="a parallel draft's mask token, where its folder does not say it",
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a Hugging Face decoder as an ONNX folder, checked against PyTorch before it takes "
        "its name. Needs: pip install 'pard-rt[export]'."
    )
    parser.add_argument(
        "source", metavar="MODEL", help="Hugging Face directory, id on the hub, or GGUF file"
    )
    parser.add_argument("out", metavar="OUT", help="folder to write, new or empty")
    _add_revision(parser, "model")
    _add_trust(parser)
    parser.add_argument(
        "--form",
        choices=("gqa", "portable"),
        default="gqa",
        help="gqa (default): ONNX Runtime on CPU and CUDA; portable: standard operators only",
    )
    parser.add_argument(
        "--weights",
        choices=("fp32", "fp16", "int8", "int4", "gguf"),
        help="of the matrices (default: fp32); int8 and int4 in blocks; gguf, the default for GGUF "
        "files: their own blocks, for CPUs",
    )
    parser.add_argument(
        "--fp16-files",
        action="store_true",
        help="round fp32 weights to float16 and store them so: half the size, opened as float32",
    )
    parser.add_argument(
        "--head-tokens",
        type=int,
        metavar="N",
        help="of a draft: keep the LM head's rows of the N tokens that the target writes most",
    )
    parser.add_argument(
        "--head-data",
        nargs="+",
        default=[],
        metavar="FILE",
        help="what the target wrote, to count tokens in: `pard-rt train regenerate`",
    )
    parser.add_argument(
        "--head-on-all-rows",
        action="store_true",
        help="for MIGraphX, of the portable form: the LM head before the last rows are picked",
    )
    parser.add_argument(
        "--mask-token-id",
        type=int,
        metavar="N",
        help="a parallel draft's mask token, where its config.json does not say it",
    )
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="most positions a sequence may have"
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a small model of a target's family to draft in parallel, through mask tokens. Given "
        "again with the same arguments, the command resumes where it stopped. Needs: pip install "
        "'pard-rt[train]'. `pard-rt train regenerate` has the target write the data."
    )
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument(
        "--model", metavar="MODEL", help="a small model of the target's family to start from"
    )
    start.add_argument(
        "--from-target",
        metavar="TARGET",
        help="start from some of the target's own layers; its embedding and LM head stay",
    )
    parser.add_argument(
        "--layers",
        type=_layers,
        metavar="N|I,J,..",
        help="how many of them, chosen by a short measurement, or which",
    )
    parser.add_argument(
        "--heal",
        type=float,
        default=0.0,
        metavar="N",
        help="epochs, from the first on, that predict the next token alone (0)",
    )
    parser.add_argument(
        "--distill",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="of the loss, learnt from the target's logits where they are kept (0.5)",
    )
    parser.add_argument(
        "--head-tokens",
        type=int,
        metavar="N",
        help="with --from-target: learn only the N tokens that occur most in the data",
    )
    _add_revision(parser, "model")
    _add_trust(parser)
    _add_data(parser, required=True)
    parser.add_argument("--output", required=True, metavar="DIR", help="Hugging Face directory")
    parser.add_argument(
        "--num-subtasks", type=int, default=8, metavar="K", help="K in training (default: 8)"
    )
    parser.add_argument(
        "--retention", type=float, default=0.7, metavar="R", help="COD's r (0.7); 1 drops nothing"
    )
    parser.add_argument(
        "--min-retention", type=float, default=0.2, metavar="R", help="COD's r_min (0.2)"
    )
    parser.add_argument(
        "--mask-token-id", type=int, metavar="N", help="default: an id that no text has"
    )
    parser.add_argument("--epochs", type=float, default=1.0, metavar="N", help="default: 1")
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens of a document (1024, or what the model and a step take)",
    )
    parser.add_argument(
        "--tokens-per-step", type=int, default=4096, metavar="N", help="default: 4096"
    )
    parser.add_argument(
        "--learning-rate", type=float, default=5e-5, metavar="R", help="of AdamW (default: 5e-5)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the order of data and of COD (0)"
    )
    parser.add_argument(
        "--target",
        metavar="MODEL",
        help="measure tokens per round with it, on held-out documents (default: --from-target)",
    )
    parser.add_argument(
        "--measure-every",
        type=int,
        default=500,
        metavar="N",
        help="steps between measurements (500)",
    )
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu (default) or cuda")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="what the forward computes in (default: bfloat16 where the processor is made for it)",
    )
    parser.add_argument(
        "--checkpoint-layers", action="store_true", help="less memory for the backward pass, slower"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of PyTorch")


def _add_data(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--data",
        required=required,
        default=[],
        nargs="+",
        metavar="FILE",
        help='.jsonl or .json of {"messages": [..]} or {"text": ..}, or text files',
    )


def _layers(text: str) -> int | tuple[int, ...]:
    try:
        return tuple(map(int, text.split(","))) if "," in text else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected a number, or numbers such as 0,1,29, got {text!r}"
        ) from error


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    try:
        return int(part), int(parts)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected two numbers such as 1/4, got {text!r}"
        ) from error


def _add_regenerate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Have a target answer a data set, or questions of its own: drafts learn best from what it "
        "writes. Given again with the same arguments, the command resumes after the last line. "
        "Needs: pip install 'pard-rt[torch]'."
    )
    parser.epilog = _EXIT_STATUS
    parser.add_argument("--target", required=True, metavar="T", help=_MODEL)
    parser.add_argument("--draft", metavar="D", help="the same; it changes the time, not the text")
    _add_data(parser, required=False)
    parser.add_argument(
        "--questions",
        type=int,
        default=0,
        metavar="N",
        help="have the target invent and answer N questions, or texts if it has no chat template",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="a .jsonl file to write")
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=64,
        metavar="N",
        help="kept of a text's pieces, or invented of a new text (64)",
    )
    parser.add_argument(
        "--question-tokens",
        type=int,
        default=256,
        metavar="N",
        help="longer questions are invented again (256)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="B", help="lines at a time (default: 8)"
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="I/N",
        help="the I-th of N parts of the lines, such as 1/4",
    )
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="an OpenAI server that runs the target, such as http://localhost:8000/v1; the target "
        "then gives the tokenizer",
    )
    parser.add_argument("--endpoint-model", metavar="NAME", help="the model's name there")
    parser.add_argument(
        "--keep-logits",
        type=int,
        default=0,
        metavar="K",
        help="also write the target's K likeliest tokens at every token of the answers",
    )
    _add_decoding(parser, max_new_tokens=512)
    _add_generating(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of sampling (default: 0)")


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Say what is installed, which of ONNX Runtime's providers work on this machine, and what "
        "the folders given are."
    )
    parser.add_argument(
        "--cmake-dir",
        action="store_true",
        help="print the directory that find_package(pard_rt) has to be shown, and nothing else",
    )
    parser.add_argument("paths", nargs="*", metavar="MODEL", help=_MODEL)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Try a target, alone or with its draft: tokenizers agree, rows agree, the cache rewinds, "
        "the text is that of plain decoding; and what a row and a round cost on this machine."
    )
    parser.epilog = _EXIT_STATUS
    parser.add_argument("target", metavar="TARGET", help=_MODEL)
    parser.add_argument("draft", nargs="?", metavar="DRAFT", help="the same; optional")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt", action="append", metavar="TEXT", help="prompt; may be given several times"
    )
    prompts.add_argument(
        "--prompt-ids",
        action="append",
        metavar="IDS",
        help="prompt as token ids, '1,2,3'; may be given several times",
    )
    parser.add_argument(
        "--perplexity",
        type=Path,
        metavar="FILE",
        help="also say how well the target predicts a text, as llama.cpp's llama-perplexity does",
    )
    _add_decoding(parser, max_new_tokens=64)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "GGUF files are converted once, when they are opened for the first time. Say what is kept "
        "of them, or remove it."
    )
    parser.add_argument("action", choices=["list", "clear"])
