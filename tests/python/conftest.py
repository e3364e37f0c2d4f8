"""Tiny models shared by the tests: written and exported once, however many tests ask for them."""

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

from pard_rt.errors import FallbackWarning
from pard_rt.exporter import Form, Weights, export
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
            warnings.simplefilter("ignore", FallbackWarning)  # random weights are rounded badly
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
