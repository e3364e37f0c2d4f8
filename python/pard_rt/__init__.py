"""pard-rt: lossless parallel-draft speculative decoding."""

from __future__ import annotations

from importlib.metadata import version

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
    read_folder,
    verify,
)
from pard_rt.errors import (
    Error,
    FolderError,
    IncompatibleModelsError,
    InvalidArgumentError,
    LogitsError,
    ModelError,
    RuntimeMissingError,
)

__version__ = version("pard-rt")

__all__ = [
    "AutoregressiveDrafter",
    "Decoder",
    "Drafter",
    "Error",
    "FolderContract",
    "FolderError",
    "ForwardItem",
    "IncompatibleModelsError",
    "InvalidArgumentError",
    "LogitsError",
    "Model",
    "ModelError",
    "ModelInfo",
    "OnnxModel",
    "ParallelDrafter",
    "ProbeReport",
    "RoundCounts",
    "RoundTimes",
    "RuntimeMissingError",
    "SamplingParams",
    "Sequence",
    "TokenEvent",
    "choose",
    "log_probability",
    "onnxruntime_providers",
    "read_folder",
    "verify",
]
