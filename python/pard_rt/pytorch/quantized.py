"""Checkpoints whose weights are quantized: transformers runs them, where it finds what it needs."""

from __future__ import annotations

from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from pard_rt.errors import Error, ModelError, RuntimeMissingError, first_line


def refuse_unknown_method(name: str, config: Any) -> None:
    """Refuse a method that transformers would load as if nothing were quantized.

    Raises
    ------
    ModelError
        Names the method.
    """
    method = _method(config)
    if method is None or method in {"bitsandbytes", *AUTO_QUANTIZATION_CONFIG_MAPPING}:
        return
    raise ModelError(
        f"'{name}' is quantized in a way that transformers does not know",
        "a quant_method of transformers",
        f"'{method}'",
        "Install a transformers that knows it, or take an unquantized checkpoint.",
    )


def _method(config: Any) -> str | None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    entries = quantization if isinstance(quantization, dict) else vars(quantization)
    method = entries.get("quant_method") or "bitsandbytes"  # whose old checkpoints do not say it
    return str(getattr(method, "value", method))


def quantized_error(name: str, config: Any, error: Exception) -> Error | None:
    """Return what a failure to load a quantized checkpoint means; None if it is not quantized.

    transformers knows two dozen methods and says of each which packages and cards it takes.
    """
    method = _method(config)
    if method is None:
        return None
    instead = "or take an unquantized checkpoint, which pard-rt export can quantize."
    if isinstance(error, ImportError):
        return RuntimeMissingError(
            f"'{name}' is quantized ({method}), and a package that runs it is not installed",
            f"what transformers needs for {method}",
            first_line(error),
            f"Install it with pip, {instead}",
        )
    return ModelError(
        f"'{name}' is quantized ({method}) and cannot be loaded here",
        f"a device and packages that transformers runs {method} with, and weights that fit",
        first_line(error),
        f"Provide them, {instead}",
    )
