"""`regenerate`: a data set in the words of the target, which its draft is to foresee."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from pard_rt._core import SamplingParams
from pard_rt.errors import require_range
from pard_rt.generator import Generator
from pard_rt.models.checkpoint import load_tokenizer
from pard_rt.models.find import display_name, locate
from pard_rt.models.options import OpenOptions
from pard_rt.outputs import Output
from pard_rt.streams import Stream
from pard_rt.training.line_file import LineFile
from pard_rt.training.prompts import Prompter, Task
from pard_rt.training.records import read_records

Ask = Callable[[list[int], int, int], Stream]  # of a prompt, its line and its turn

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
    answers, cut
        What this run had the target say, and how many of it a limit of length ended.
    tokens, rounds
        Of this run: tokens generated, and rounds they took, each text's counted by itself.
    seconds
        Since this run began to generate.
    """

    file: Path
    lines: int
    total: int
    skipped: int
    answers: int = 0
    cut: int = 0
    tokens: int = 0
    rounds: int = 0
    seconds: float = 0.0

    def count(self, output: Output) -> None:
        """Add one answer."""
        self.answers += 1
        self.cut += output.finish_reason == "length"
        self.tokens += output.stats.counts.committed
        self.rounds += output.stats.counts.rounds


def regenerate(
    target: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    draft: str | os.PathLike[str] | None = None,
    max_new_tokens: int = 512,
    prompt_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    batch_size: int = 8,
    max_length: int | None = None,
    report: Callable[[Regenerated], None] = lambda _: None,
    **opening: Any,
) -> Regenerated:
    """Have the target answer a data set anew; begun again, it goes on behind the lines there are.

    The lines depend on neither the draft, `batch_size`, nor where a run was cut off.

    Parameters
    ----------
    target, draft
        As `Generator` takes them. A conversation needs the target's chat template.
    data
        Files: see `read_records`. Of a conversation, whatever the assistant says is dropped, and an
        answer is put behind every run of the others' turns, on top of the answers before. A text is
        read in pieces of `prompt_tokens` + `max_new_tokens` tokens; the beginning of each is kept.
    output
        A ``.jsonl`` file of the same two forms, which `train` reads; how its lines are made goes
        beside it, as ``*.settings.json``.
    max_new_tokens
        Of one answer. An answer cut there is the last of its conversation.
    prompt_tokens
        What is kept of each piece of a text; the target writes on from there.
    temperature, top_k, top_p, min_p
        See `SamplingParams`; greedy by default.
    seed
        Of sampling; each answer has its own, made of this one, its line and its turn.
    batch_size
        Lines in the making at a time, 1..16.
    max_length
        As `Generator` takes it. Prompts that leave no room for an answer are skipped; a
        conversation ends before a turn that would leave none.
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
        A model cannot be opened, or fails.

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
        ("max_new_tokens", max_new_tokens, 1, 1 << 24),
        ("prompt_tokens", prompt_tokens, 1, 1 << 24),
        ("seed", seed, 0, 2**64 - 1),
        ("batch_size", batch_size, 1, 16),
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
    folder = locate(target, found)
    settings = {
        "target": f"{display_name(folder.absolute())} {_digest(sorted(folder.iterdir()), _TAIL)}",
        "data": _digest(map(Path, data)),
        "max_new_tokens": max_new_tokens,
        "prompt_tokens": prompt_tokens,
        "max_length": max_length,
        "seed": seed,
        **sampling,
    }
    lines = LineFile(Path(output), settings)
    generator = Generator(target, draft, max_length=max_length, **opening)
    prompter = Prompter(
        load_tokenizer(str(folder), trust_remote_code=found.trust_remote_code),
        max_length=generator.max_length,
        prompt_tokens=prompt_tokens,
        continued_tokens=max_new_tokens,
    )
    tasks = prompter.tasks(records)
    done = Regenerated(lines.path, lines.num_lines, len(tasks), prompter.num_skipped)
    began = time.monotonic()

    def ask(prompt: list[int], line: int, turn: int) -> Stream:
        noise = _seed(seed, line, turn)
        return generator.stream(prompt, max_new_tokens=max_new_tokens, seed=noise, **sampling)

    lines.begin()
    for line in _perform(tasks, lines.num_lines, batch_size, ask, done.count):
        lines.append(line)
        done.lines, done.seconds = lines.num_lines, time.monotonic() - began
        report(done)
    return done


class _Work:
    """A line in the making: the dialogue it comes from, and what that asks now."""

    def __init__(self, number: int, task: Task, ask: Ask) -> None:
        self._number = number
        self._dialogue = task()
        self._ask = ask
        self._turn = 0
        self.line: dict[str, Any] | None = None  # once it is done
        self.stream = ask(next(self._dialogue), number, 0)

    def hear(self, output: Output) -> None:
        """Take an answer, and ask on."""
        self._turn += 1
        try:
            self.stream = self._ask(self._dialogue.send(output), self._number, self._turn)
        except StopIteration as end:
            self.line = end.value


def _perform(
    tasks: Sequence[Task], first: int, batch_size: int, ask: Ask, count: Callable[[Output], None]
) -> Iterator[dict[str, Any]]:
    """Yield the lines of tasks in order. One that is done early makes room for one behind."""
    coming = deque(range(first, len(tasks)))
    works: deque[_Work] = deque()
    while coming or works:
        speaking = [work for work in works if work.line is None]
        while coming and len(speaking) < batch_size:
            number = coming.popleft()
            speaking.append(_Work(number, tasks[number], ask))
            works.append(speaking[-1])
        next(speaking[0].stream)  # a token; where none has come yet, by a round of all of them
        for work in speaking:
            if work.stream.finished:
                count(work.stream.output)
                work.hear(work.stream.output)
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
