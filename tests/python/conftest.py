"""Models shared by the tests: written and exported once, however many tests ask for them.

Tiny ones are seeded and made here. Published ones have real weights, which
`tests/python/published_models.py` downloads; tests that need one which is not there are skipped.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import published_models
from pard_rt.errors import Notice
from pard_rt.exporter import Form, Weights, export
from published_equality import exported
from tiny_models import make_model


def listen_more(checkpoint: Path) -> None:
    """Let layers outweigh the embedding: with tied weights the next token is the last one else."""
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight *= 8
    save_file(weights, file, metadata={"format": "pt"})


@dataclass(frozen=True)
class TinyModels:
    """Checkpoints and ONNX folders of tiny models, under one directory."""

    root: Path

    def checkpoint(self, architecture: str, **options: Any) -> Path:
        """The Hugging Face directory of `make_model` with these options."""
        name = "-".join([architecture, *(f"{key}={options[key]}" for key in sorted(options))])
        path = self.root / name
        if not path.exists():
            listen_more(make_model(path, architecture, **options))
        return path

    def folder(
        self, architecture: str, form: Form, weights: Weights = "fp32", **options: Any
    ) -> Path:
        """The ONNX folder of that checkpoint."""
        checkpoint = self.checkpoint(architecture, **options)
        path = self.root / f"{checkpoint.name}.{form}.{weights}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)  # random weights are rounded badly
            return (
                path
                if path.exists()
                else export(checkpoint, path, form=form, weights=weights).folder
            )


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyModels]:
    """Models this small are fastest on one thread, and where tracing is not logged."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.getLogger("torch.__trace").propagate = False
    yield TinyModels(tmp_path_factory.mktemp("tiny_models"))
    torch.set_num_threads(threads)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--published",
        default="smollm2",
        help="published models for the tests that take any, separated by commas",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "published" in metafunc.fixturenames:
        names = metafunc.config.getoption("--published").split(",")
        metafunc.parametrize("published", names, indirect=True, scope="session")


def published_checkpoint(name: str) -> Path:
    """The Hugging Face directory of a published model; skips the test where there is none."""
    path = published_models.folder(name)
    if not path.exists():
        pytest.skip(
            f"{name} is missing: make it with `python tests/python/published_models.py {name}`"
        )
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The Hugging Face directory of SmolLM2-135M-Instruct."""
    return published_checkpoint("smollm2")


@pytest.fixture(scope="session")
def smollm2_folder(smollm2: Path, tiny_models: TinyModels) -> Path:
    """The ONNX folder of SmolLM2, in the gqa form with float32 weights."""
    return exported(smollm2)


@pytest.fixture(scope="session")
def published(request: pytest.FixtureRequest) -> Path:
    """The Hugging Face directory of each model that `--published` names."""
    return published_checkpoint(request.param)
