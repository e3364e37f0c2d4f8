"""pard-rt: lossless parallel-draft speculative decoding."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pard_rt._core import (
    AutoregressiveDrafter,
    Decoder,
    Drafter,
    FolderContract,
    ForwardItem,
    Model,
    ModelInfo,
    OnnxModel,
    ParallelDrafter,
    ProbeReport,
    RoundCounts,
    RoundTimes,
    SamplingParams,
    Sequence,
    TokenEvent,
    choose,
    log_probability,
    onnxruntime_providers,
    probe_model,
    read_folder,
    verify,
)
from pard_rt.cpp import get_cmake_dir
from pard_rt.errors import (
    Error,
    FallbackWarning,
    FolderError,
    IncompatibleModelsError,
    InvalidArgumentError,
    LogitsError,
    ModelError,
    Notice,
    RuntimeMissingError,
    requiring,
)
from pard_rt.generator import Generator, Options
from pard_rt.models import OpenOptions
from pard_rt.outputs import Output, Piece, Stats
from pard_rt.streams import Stream

if TYPE_CHECKING:
    from pard_rt.exporter import export
    from pard_rt.models.checkpoint import load
    from pard_rt.pytorch.own_module import wrap
    from pard_rt.pytorch.torch_model import TorchModel
    from pard_rt.training.config import TrainConfig
    from pard_rt.training.regenerate import regenerate
    from pard_rt.training.train import train

__version__ = version("pard-rt")

# What is imported when it is first asked for: its module, and the extra with its packages.
_LAZY = {
    "TorchModel": ("pard_rt.pytorch.torch_model", "torch"),
    "TrainConfig": ("pard_rt.training.config", "train"),
    "export": ("pard_rt.exporter", "export"),
    "load": ("pard_rt.models.checkpoint", "torch"),
    "regenerate": ("pard_rt.training.regenerate", "torch"),
    "train": ("pard_rt.training.train", "train"),
    "wrap": ("pard_rt.pytorch.own_module", "torch"),
}

__all__ = [
    "AutoregressiveDrafter",
    "Decoder",
    "Drafter",
    "Error",
    "FallbackWarning",
    "FolderContract",
    "FolderError",
    "ForwardItem",
    "Generator",
    "IncompatibleModelsError",
    "InvalidArgumentError",
    "LogitsError",
    "Model",
    "ModelError",
    "ModelInfo",
    "Notice",
    "OnnxModel",
    "OpenOptions",
    "Options",
    "Output",
    "ParallelDrafter",
    "Piece",
    "ProbeReport",
    "RoundCounts",
    "RoundTimes",
    "RuntimeMissingError",
    "SamplingParams",
    "Sequence",
    "Stats",
    "Stream",
    "TokenEvent",
    "TorchModel",
    "TrainConfig",
    "choose",
    "export",
    "get_cmake_dir",
    "load",
    "log_probability",
    "onnxruntime_providers",
    "probe_model",
    "read_folder",
    "regenerate",
    "train",
    "verify",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'pard_rt' has no attribute {name!r}")
    module, extra = _LAZY[name]
    with requiring(extra, f"pard_rt.{name}"):
        return getattr(importlib.import_module(module), name)
