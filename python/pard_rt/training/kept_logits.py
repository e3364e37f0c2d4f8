"""What else the target would have written: its likeliest tokens at every token of its answers.

The file ``answers.logits`` lies beside ``answers.jsonl``. It begins with a line of JSON that says
whose logits it holds. Then comes an entry for every line of the answers, in order: a number n, and
for each of the line's n learnt tokens the ids (uint32) and log-probabilities (float16) of the
target's K likeliest tokens there. So a token takes 6 K bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack

from pard_rt._core import ForwardItem
from pard_rt.errors import FolderError, InvalidArgumentError
from pard_rt.models import OpenedModel
from pard_rt.training.documents import Document, Likely, documents_of
from pard_rt.training.records import read_records
from pard_rt.writing import writing

_ROWS = 256  # of one forward: a vocabulary is wide


@dataclass(frozen=True)
class LogitsHeader:
    """Whose logits a file holds.

    Attributes
    ----------
    k
        Tokens per row.
    target
        The target's name and digest.
    vocabulary
        Digest of its tokens.
    """

    k: int
    target: str
    vocabulary: str


def logits_file(answers: Path) -> Path:
    """Return where the logits of a file of answers lie."""
    return answers.with_suffix(".logits")


def vocabulary_digest(tokenizer: Any) -> str:
    """Return a digest of a tokenizer's tokens and their ids."""
    tokens = sorted((i, text) for text, i in tokenizer.get_vocab().items())
    return sha256(json.dumps(tokens).encode()).hexdigest()[:16]


def write_logits(
    opened: OpenedModel,
    tokenizer: Any,
    answers: Path,
    header: LogitsHeader,
    report: Callable[[int], None],
) -> None:
    """Write the target's logits for a file of its answers; begun again, it resumes.

    Parameters
    ----------
    opened
        The target, which decodes nothing meanwhile.
    tokenizer
        Of transformers.
    answers
        What `regenerate` wrote.
    header
        What to keep, and of whom.
    report
        Told of how many lines the logits are there.

    Raises
    ------
    FolderError
        The file cannot be written, or holds other logits.
    """
    path = logits_file(answers)
    done, end = _whole(path, header)
    records = list(read_records([answers]))
    with (
        writing(path, resume="The next run resumes after the last whole line."),
        path.open("r+b" if end else "wb") as file,
    ):
        if not end:
            file.write(json.dumps(asdict(header)).encode() + b"\n")
        else:
            file.seek(end)
            file.truncate()
        for number, record in enumerate(records[done:], start=done):
            whole = documents_of(record, number, tokenizer, opened.info.max_length)
            file.write(_pack(_entry(opened, list(whole), header.k)))
            report(number + 1)


def with_logits(
    documents: Sequence[Document], paths: Sequence[Path], tokenizer: Any
) -> list[Document]:
    """Give documents the logits that are kept beside their files.

    Parameters
    ----------
    documents
        Read from `paths`.
    paths
        Data files, some of which `regenerate` wrote.
    tokenizer
        Of the draft: ids mean the same to it and the target.

    Raises
    ------
    FolderError
        A file of logits is damaged.
    InvalidArgumentError
        Logits are of another vocabulary, not of every line, or not equally many everywhere.
    """
    of_records: dict[int, npt.NDArray[np.void]] = {}
    first, widths = 0, set()
    for path in paths:
        count = sum(1 for _ in read_records([path]))
        if logits_file(path).exists():
            rows = _read(logits_file(path), tokenizer)
            if len(rows) != count:
                raise _unfit(path, f"logits of {count} lines", str(len(rows)))
            of_records |= dict(enumerate(rows, start=first))
            widths |= {each["id"].shape[-1] for each in rows}
        first += count
    if len(widths) > 1:
        raise _unfit(paths[0], "as many logits per token in all files", str(sorted(widths)))
    return [
        document
        if document.record not in of_records
        else replace(document, likely=_likely(document, of_records[document.record]))
        for document in documents
    ]


def _likely(document: Document, rows: npt.NDArray[np.void]) -> Likely:
    count = int(document.learnt.sum())
    own = rows[document.offset : document.offset + count]
    here = np.zeros(count, rows.dtype)
    here["logprob"] = -np.inf
    here[: len(own)] = own
    return Likely(
        torch.from_numpy(here["id"].astype(np.int64)),
        torch.from_numpy(here["logprob"].astype(np.float32)),
    )


def _read(path: Path, tokenizer: Any) -> list[npt.NDArray[np.void]]:
    header, begin = _header(path)
    if (own := vocabulary_digest(tokenizer)) != header.vocabulary:
        raise _unfit(path, f"those of a target with the vocabulary {own}", header.vocabulary)
    return [rows for rows, _ in _entries(path, header.k, begin)]


def _unfit(path: Path, expected: str, actual: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"The logits kept beside '{path}' do not fit",
        expected,
        actual,
        "Remove them, or keep them again: pard-rt train regenerate --keep-logits.",
    )


def _row_type(k: int) -> np.dtype[np.void]:
    return np.dtype([("id", "<u4", (k,)), ("logprob", "<f2", (k,))])


def _pack(rows: npt.NDArray[np.void]) -> bytes:
    return np.uint32(len(rows)).tobytes() + rows.tobytes()


def _header(path: Path) -> tuple[LogitsHeader, int]:
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 16)
        return LogitsHeader(**json.loads(line)), len(line)
    except (OSError, ValueError, TypeError) as error:
        raise FolderError(
            f"'{path}' does not begin as kept logits do",
            "a line of JSON with k, target and vocabulary",
            repr(line[:40]) if "line" in locals() else str(error),
            "Remove the file.",
        ) from error


def _entries(path: Path, k: int, begin: int) -> Iterator[tuple[npt.NDArray[np.void], int]]:
    """Yield the rows of every whole line, and where its entry ends."""
    kept, row = np.memmap(path, np.uint8, "r"), _row_type(k)
    while begin + 4 <= len(kept):
        count = int(kept[begin : begin + 4].view("<u4")[0])
        end = begin + 4 + count * row.itemsize
        if end > len(kept):
            return
        yield kept[begin + 4 : end].view(row), end
        begin = end


def _whole(path: Path, header: LogitsHeader) -> tuple[int, int]:
    """Return how many lines have their logits, and where these end; 0, 0 without a file."""
    if not path.exists() or not path.stat().st_size:
        return 0, 0
    known, end = _header(path)
    if known != header:
        raise FolderError(
            f"'{path}' holds other logits",
            f"those of {known}",
            str(header),
            "Remove the file, or write to another.",
        )
    ends = [end for _, end in _entries(path, header.k, end)]
    return len(ends), ends[-1] if ends else end


def _entry(opened: OpenedModel, documents: list[Document], k: int) -> npt.NDArray[np.void]:
    """Return the rows of a line; those of tokens that a model of this length cannot see are empty.

    An empty row has log-probabilities of -inf.
    """
    count = max((each.offset + int(each.learnt.sum()) for each in documents), default=0)
    rows = np.zeros(count, _row_type(k))
    rows["logprob"] = -np.inf
    for document in documents:
        tokens: list[int] = document.tokens.tolist()
        learnt = np.flatnonzero(document.learnt.numpy())
        places = document.offset + np.arange(len(learnt))
        for begin in range(0, len(tokens) - 1, _ROWS):
            part = tokens[begin : min(begin + _ROWS, len(tokens) - 1)]
            inside = (learnt > begin) & (learnt <= begin + len(part))
            wanted = int(len(part) if inside.any() else 0)
            item = ForwardItem(sequence=0, past_length=begin, tokens=part, num_rows=wanted)
            logits = opened.model.forward([item])
            if not wanted:
                continue
            top, ids = _likeliest(logits, k)
            at = learnt[inside] - begin - 1
            rows["id"][places[inside]] = ids[at]
            rows["logprob"][places[inside]] = top[at]
        opened.model.release(0)
    return rows


def _likeliest(logits: Any, k: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return log-probabilities and ids of the k likeliest tokens of every row."""
    rows = from_dlpack(logits).float()
    top, ids = torch.topk(rows, k)
    top = top - rows.logsumexp(-1, keepdim=True)
    return top.cpu().numpy(), ids.cpu().numpy()
