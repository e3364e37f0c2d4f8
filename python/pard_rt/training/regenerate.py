"""`regenerate`: a data set in the words of the target, which its draft has to predict."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path
from typing import Any

from pard_rt._core import SamplingParams
from pard_rt.errors import require_range
from pard_rt.generator import Generator
from pard_rt.models import open_model
from pard_rt.models.checkpoint import load_tokenizer
from pard_rt.models.converted import converted
from pard_rt.models.find import display_name, is_gguf, locate
from pard_rt.models.options import OpenOptions
from pard_rt.training.answering import Answerer, EndpointAnswerer, LocalAnswerer, Pending
from pard_rt.training.kept_logits import LogitsHeader, vocabulary_digest, write_logits
from pard_rt.training.line_file import LineFile
from pard_rt.training.prompts import Answer, Asked, Prompter, Task
from pard_rt.training.records import read_records

Ask = Callable[[Asked, int, int], Pending]  # of a prompt, its line and its turn

_TAIL = 1 << 16  # bytes of each of the target's files that tell it from another: weights are large


@dataclass
class Regenerated:
    """What is there, and what this run has done of it.

    Attributes
    ----------
    file
        The data set.
    lines, total
        Lines there are, those of runs before included, and lines there will be.
    skipped
        Prompts too long for the target: no line stands for them.
    kept
        Lines whose logits have been kept so far.
    answers, cut
        What this run had the target answer, and how many answers a limit of length ended.
    tokens, rounds
        Of this run: tokens generated, those of invented questions too, and rounds they took, each
        text's counted by itself; no rounds where an endpoint answers.
    seconds
        Since this run began to generate.
    """

    file: Path
    lines: int
    total: int
    skipped: int
    kept: int = 0
    answers: int = 0
    cut: int = 0
    tokens: int = 0
    rounds: int = 0
    seconds: float = 0.0

    def count(self, asked: Asked, answer: Answer) -> None:
        """Add one answer."""
        if not asked.invents:
            self.answers += 1
            self.cut += answer.is_cut
        self.tokens += answer.tokens
        self.rounds += answer.rounds


def regenerate(
    target: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    questions: int = 0,
    draft: str | os.PathLike[str] | None = None,
    max_new_tokens: int = 512,
    prompt_tokens: int = 64,
    question_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    shard: tuple[int, int] = (1, 1),
    batch_size: int = 8,
    max_length: int | None = None,
    endpoint: str | None = None,
    endpoint_model: str | None = None,
    keep_logits: int = 0,
    report: Callable[[Regenerated], None] = lambda _: None,
    **opening: Any,
) -> Regenerated:
    """Have the target answer a data set, or questions that it invents; a second run resumes.

    The lines depend on neither the draft, `batch_size`, the shards, nor where a run was cut off.

    Parameters
    ----------
    target, draft
        As `Generator` takes them. A conversation needs the target's chat template.
    data
        Files: see `read_records`. The assistant's turns of a conversation are dropped, and the
        target answers after every run of the others' turns, on top of its answers before. A text is
        read in pieces of `prompt_tokens` + `max_new_tokens` tokens; the beginning of each is kept.
    output
        A ``.jsonl`` file of the same two forms, which `train` reads; how its lines are made goes
        beside it, as ``*.settings.json``.
    questions
        So many lines follow those of the data in which the target invents the user's question too,
        sampled at temperature 1. Without a chat template it invents beginnings of texts.
    max_new_tokens
        Of one answer. An answer cut there is the last of its conversation.
    prompt_tokens
        What is kept of each piece of a text, or invented of a new one; the target continues it.
    question_tokens
        A question that is longer is invented again.
    temperature, top_k, top_p, min_p
        See `SamplingParams`; greedy by default.
    seed
        Of sampling; each answer has its own, made of this one, its line and its turn.
    shard
        (i, n): the i-th of n parts, counted from 1. The parts' lines in order are the whole's.
    batch_size
        Lines in the making at a time: 1 to 16, or with an endpoint to 1024.
    max_length
        As `Generator` takes it. Prompts that leave no room for an answer are skipped; a
        conversation ends before a turn that would leave none.
    endpoint, endpoint_model
        Address of an OpenAI server that runs the target, such as ``http://localhost:8000/v1``, and
        the model's name there, if it serves several. `target` then gives the tokenizer alone, and
        the text is what that server writes.
    keep_logits
        Once the lines are there, the target's so many likeliest tokens at every token of its
        answers are written beside them, as ``*.logits``, for `train` to learn from. The target is
        opened here for it.
    report
        Told how far it is, after every line; the record is the one returned in the end.
    opening
        What else `Generator` takes: method, num_speculative_tokens, device, ...

    Raises
    ------
    InvalidArgumentError
        The data or an argument cannot be used; nothing has been written.
    FolderError
        The output cannot be written, at the start or, when a disk fills up, later; or its lines
        are another target's or were made otherwise.
    Error
        A model or an endpoint cannot be opened, or fails; the lines written so far stay.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "code.txt").write_text("class Parser:")
    >>> done = regenerate("demo", [folder / "code.txt"], folder / "own.jsonl", max_new_tokens=8)
    >>> done.lines, done.tokens
    (1, 8)
    """
    for name, value, low, high in (
        ("questions", questions, 0, 1 << 32),
        ("max_new_tokens", max_new_tokens, 1, 1 << 24),
        ("prompt_tokens", prompt_tokens, 1, 1 << 24),
        ("question_tokens", question_tokens, 1, 1 << 24),
        ("seed", seed, 0, 2**64 - 1),
        ("batch_size", batch_size, 1, 16 if endpoint is None else 1024),
        ("keep_logits", keep_logits, 0, 1 << 16),
        ("shards", shard[1], 1, 1 << 20),
        ("shard", shard[0], 1, shard[1]),
    ):
        require_range(name, value, low, high)
    sampling: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    SamplingParams(**sampling)
    records = list(read_records([Path(path) for path in data]))
    hub = ("revision", "token", "cache_dir", "trust_remote_code")
    found = OpenOptions(**{name: opening[name] for name in hub if name in opening})
    model = locate(target, found)
    files = sorted(model.iterdir()) if model.is_dir() else [model]
    settings = {
        "target": f"{display_name(model.absolute())} {_digest(files, _TAIL)}",
        "data": _digest(map(Path, data)),
        "questions": questions,
        "question_tokens": question_tokens,
        "max_new_tokens": max_new_tokens,
        "prompt_tokens": prompt_tokens,
        "max_length": max_length,
        "seed": seed,
        "shard": f"{shard[0]}/{shard[1]}",
        **sampling,
    }
    tokenizer: Any = None
    answerer: Answerer
    if endpoint is None:
        lines = LineFile(Path(output), {**settings, "answered by": "the target"})
        generator = Generator(target, draft, max_length=max_length, **opening)
        tokenizer = generator.tokenizer
        answerer = LocalAnswerer(generator, sampling)
        del generator
    else:
        answerer = EndpointAnswerer(
            endpoint,
            endpoint_model,
            sampling=sampling,
            workers=batch_size,
            max_length=max_length,
        )
        lines = LineFile(Path(output), {**settings, "answered by": f"{answerer.model} elsewhere"})
    if not hasattr(tokenizer, "chat_template"):  # an ONNX folder's is of the tokenizers library
        folder = converted(model) if is_gguf(model) else model
        tokenizer = load_tokenizer(str(folder), trust_remote_code=found.trust_remote_code)
    if keep_logits:
        require_range("keep_logits", keep_logits, 1, len(tokenizer))
    with closing(answerer):
        prompter = Prompter(
            tokenizer,
            max_length=answerer.max_length,
            prompt_tokens=prompt_tokens,
            question_tokens=question_tokens,
            continued_tokens=max_new_tokens,
        )
        tasks = prompter.tasks(records, questions)
        first, last = (len(tasks) * part // shard[1] for part in (shard[0] - 1, shard[0]))
        done = Regenerated(lines.path, lines.num_lines, last - first, prompter.num_skipped)
        began = time.monotonic()

        def ask(asked: Asked, line: int, turn: int) -> Pending:
            return answerer.ask(asked, _seed(seed, line, turn))

        lines.begin()
        left = deque(islice(enumerate(tasks), first + lines.num_lines, last))
        for line in _perform(left, batch_size, ask, answerer, done.count):
            lines.append(line)
            done.lines, done.seconds = lines.num_lines, time.monotonic() - began
            report(done)
    if keep_logits:
        names = {each.name for each in fields(OpenOptions)}
        options = {name: value for name, value in opening.items() if name in names}
        header = LogitsHeader(keep_logits, settings["target"], vocabulary_digest(tokenizer))

        def kept(count: int) -> None:
            done.kept = count
            report(done)

        del answerer  # the target is opened once at a time
        opened = open_model(target, OpenOptions(max_length=max_length, **options))
        write_logits(opened, tokenizer, lines.path, header, kept)
    return done


class _Work:
    """A line in the making: the dialogue it comes from, and what that asks now."""

    def __init__(self, number: int, task: Task, ask: Ask) -> None:
        self._number = number
        self._dialogue = task()
        self._ask = ask
        self._turn = 0
        self.line: dict[str, Any] | None = None  # once it is done
        self.asked = next(self._dialogue)
        self.pending = ask(self.asked, number, 0)

    def hear(self, answer: Answer) -> None:
        """Take an answer, and ask on."""
        self._turn += 1
        try:
            self.asked = self._dialogue.send(answer)
        except StopIteration as end:
            self.line = end.value
        else:
            self.pending = self._ask(self.asked, self._number, self._turn)


def _perform(
    coming: deque[tuple[int, Task]],
    batch_size: int,
    ask: Ask,
    answerer: Answerer,
    count: Callable[[Asked, Answer], None],
) -> Iterator[dict[str, Any]]:
    """Yield the lines of tasks in order. One that is done early makes room for a later one."""
    works: deque[_Work] = deque()
    while coming or works:
        speaking = [work for work in works if work.line is None]
        while coming and len(speaking) < batch_size:
            speaking.append(_Work(*coming.popleft(), ask))
            works.append(speaking[-1])
        answerer.proceed([work.pending for work in speaking])
        for work in speaking:
            if (answer := work.pending.answer) is not None:
                count(work.asked, answer)
                work.hear(answer)
        while works and (line := works[0].line) is not None:
            works.popleft()
            yield line


def _seed(seed: int, line: int, turn: int) -> int:
    """Return noise of its own for every answer: it would otherwise repeat from place to place."""
    mixed = blake2b(f"{seed} {line} {turn}".encode(), digest_size=8).digest()
    return int.from_bytes(mixed, "little")


def _digest(files: Iterable[Path], tail: int | None = None) -> str:
    """Digest of files, or of their names, sizes and last `tail` bytes."""
    digest = sha256()
    for file in files:
        if file.is_file():
            size = file.stat().st_size
            with file.open("rb") as opened:
                opened.seek(0 if tail is None else max(0, size - tail))
                digest.update(f"{file.name} {size} ".encode() + opened.read())
    return f"sha256:{digest.hexdigest()[:16]}"
