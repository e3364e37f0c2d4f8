"""What else the target would have written: its likeliest tokens at every token of its answers.

The file ``answers.logits`` lies beside ``answers.jsonl``. It begins with a line of JSON that says
whose logits it holds. Then comes an entry for every line of the answers, in order: how many tokens
of it are learnt, their CRC-32, and for each of them the ids (uint32) and log-probabilities
(float16) of the target's K likeliest tokens there. So a token takes 6 K bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack

from pard_rt._core import ForwardItem
from pard_rt.errors import FolderError, InvalidArgumentError, first_line
from pard_rt.models import OpenedModel
from pard_rt.training.documents import Document, Likely, documents_of
from pard_rt.training.records import Record, read_records
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
        Called after every line with the number of lines whose logits are kept.

    Raises
    ------
    FolderError
        The file cannot be written, or holds other logits.
    """
    path = logits_file(answers)
    records = list(read_records([answers]))
    done, end = _whole(path, header, records, tokenizer)
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
            pieces = documents_of(record, number, tokenizer, opened.info.max_length)
            learnt = _learnt(record, tokenizer)
            rows = _rows(opened, list(pieces), len(learnt), header.k)
            file.write(_Entry(_checksum(learnt), rows).pack())
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
    if not any(logits_file(path).exists() for path in paths):
        return list(documents)
    of_records: dict[int, npt.NDArray[np.void]] = {}
    first, widths = 0, set()
    for path in paths:
        records = list(read_records([path]))
        if logits_file(path).exists():
            entries = _read(logits_file(path), tokenizer)
            if len(entries) != len(records):
                raise _unfit(path, f"logits of {len(records)} lines", str(len(entries)))
            for number, (entry, record) in enumerate(zip(entries, records, strict=True)):
                if not entry.is_of(_learnt(record, tokenizer)):
                    raise _unfit(path, f"those of the tokens of {record.where}", "others")
                of_records[first + number] = entry.rows
                widths.add(entry.rows["id"].shape[-1])
        first += len(records)
    if len(widths) > 1:
        raise _unfit(paths[0], "as many logits per token in all files", str(sorted(widths)))
    return [
        document
        if document.record not in of_records
        else replace(document, likely=_likely(document, of_records[document.record]))
        for document in documents
    ]


def _likely(document: Document, rows: npt.NDArray[np.void]) -> Likely:
    own = rows[document.offset : document.offset + int(document.learnt.sum())]
    return Likely(
        torch.from_numpy(own["id"].astype(np.int64)),
        torch.from_numpy(own["logprob"].astype(np.float32)),
    )


def _learnt(record: Record, tokenizer: Any) -> torch.Tensor:
    """Return all tokens of a record that are learnt, int64 [n]."""
    whole = [each.tokens[each.learnt] for each in documents_of(record, 0, tokenizer, 1 << 30)]
    return torch.cat(whole) if whole else torch.zeros(0, dtype=torch.int64)


def _checksum(learnt: torch.Tensor) -> int:
    return crc32(learnt.numpy().tobytes())


@dataclass(frozen=True)
class _Entry:
    """Of a line: which tokens it has, and the rows kept of them."""

    checksum: int
    rows: npt.NDArray[np.void]

    def pack(self) -> bytes:
        head = np.array([len(self.rows), self.checksum], "<u4")
        return head.tobytes() + self.rows.tobytes()

    def is_of(self, learnt: torch.Tensor) -> bool:
        return len(learnt) == len(self.rows) and _checksum(learnt) == self.checksum


def _read(path: Path, tokenizer: Any) -> list[_Entry]:
    header, begin = _header(path)
    if (own := vocabulary_digest(tokenizer)) != header.vocabulary:
        raise _unfit(path, f"those of a target with the vocabulary {own}", header.vocabulary)
    return [entry for entry, _ in _entries(path, header.k, begin)]


def _unfit(path: Path, expected: str, actual: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"The logits kept beside '{path}' do not fit",
        expected,
        actual,
        "Remove them, or keep them again: pard-rt train regenerate --keep-logits.",
    )


def _row_type(k: int) -> np.dtype[np.void]:
    return np.dtype([("id", "<u4", (k,)), ("logprob", "<f2", (k,))])


def _header(path: Path) -> tuple[LogitsHeader, int]:
    line = b""
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 16)
        return LogitsHeader(**json.loads(line)), len(line)
    except (OSError, ValueError, TypeError) as error:
        raise FolderError(
            f"'{path}' does not begin as kept logits do",
            "a line of JSON with k, target and vocabulary",
            repr(line[:40]) if line else first_line(error),
            "Remove the file.",
        ) from error


def _entries(path: Path, k: int, begin: int) -> Iterator[tuple[_Entry, int]]:
    """Yield every whole entry, and where it ends."""
    kept, row = np.memmap(path, np.uint8, "r"), _row_type(k)
    while begin + 8 <= len(kept):
        count, checksum = map(int, kept[begin : begin + 8].view("<u4"))
        end = begin + 8 + count * row.itemsize
        if end > len(kept):
            return
        yield _Entry(checksum, kept[begin + 8 : end].view(row)), end
        begin = end


def _whole(
    path: Path, header: LogitsHeader, records: Sequence[Record], tokenizer: Any
) -> tuple[int, int]:
    """Return how many lines have their logits, and where these end; 0, 0 without a file."""
    if not path.exists() or not path.stat().st_size:
        return 0, 0
    known, begin = _header(path)
    entries = list(_entries(path, known.k, begin))
    if (
        known != header
        or len(entries) > len(records)
        or not all(
            entry.is_of(_learnt(record, tokenizer))
            for (entry, _), record in zip(entries, records, strict=False)
        )
    ):
        raise FolderError(
            f"'{path}' holds other logits",
            f"{header.k} per token of these answers, by {header.target}",
            f"{known.k} per token, of other answers or by {known.target}",
            "Remove the file, or write to another.",
        )
    return len(entries), entries[-1][1] if entries else begin


def _rows(
    opened: OpenedModel, documents: list[Document], count: int, k: int
) -> npt.NDArray[np.void]:
    """Return the rows of a line; those of tokens that a model of this length cannot see are empty.

    An empty row has log-probabilities of -inf.
    """
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
            top, ids = _likeliest(logits, k, opened.info.num_tokens)
            at = learnt[inside] - begin - 1
            rows["id"][places[inside]] = ids[at]
            rows["logprob"][places[inside]] = top[at]
        opened.model.release(0)
    return rows


def _likeliest(
    logits: Any, k: int, num_tokens: int | None
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return log-probabilities and ids of the k likeliest tokens of every row, without padding."""
    rows = from_dlpack(logits)[:, :num_tokens].float()
    top, ids = torch.topk(rows, k)
    top = top - rows.logsumexp(-1, keepdim=True)
    return top.cpu().numpy(), ids.cpu().numpy()
