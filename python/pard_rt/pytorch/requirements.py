"""What a decoder must be, as far as its configuration says it: asked before weights are read."""

from __future__ import annotations

from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pard_rt.errors import ModelError

_LAYER_TYPES = ("full_attention", "sliding_attention")
_RECURRENT_LAYER_TYPES = ("linear_attention", "conv", "hybrid", "hybrid_sliding")


def is_causal_lm(config: Any) -> bool:
    """Tell whether transformers has a causal language model of its own for a configuration."""
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING


def require_decoder(name: str, config: Any, *, is_foreign: bool = False) -> None:
    """Refuse a configuration of anything but a decoder whose layers all attend to cached rows.

    Where it `is_foreign`, a class that transformers does not know runs it.

    Raises
    ------
    ModelError
        Names what the model is, or has, instead.
    """
    classes = getattr(config, "architectures", None) or ()
    if getattr(config, "is_encoder_decoder", False):
        actual = f"an encoder-decoder ({config.model_type})"
    elif masked := [each for each in classes if each.endswith("ForMaskedLM")]:
        actual = f"a masked language model ({masked[0]})"
    elif not is_causal_lm(config) and not is_foreign:
        actual = str(config.model_type)
    else:
        refuse_layers(config)
        if is_causal_lm(config):
            module: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            if module._is_stateful:
                raise _recurrent(config, "a recurrent state")
        return
    raise ModelError(
        f"{name} is not a decoder-only language model",
        "a causal language model",
        actual,
        "Use a model that transformers loads as AutoModelForCausalLM.",
    )


def refuse_scattered(module: Any) -> None:
    """Refuse a module whose weights are not all on one device, or nowhere."""
    devices = sorted({str(weight.device) for weight in module.parameters()})
    if len(devices) != 1 or devices == ["meta"]:
        raise ModelError(
            f"The weights of {type(module).__name__} are not on one device",
            "all of them on one, such as cpu or cuda:0",
            " and ".join(devices) or "no weights",
            "Load it without device_map, or with one device; 'meta' stands for weights that are "
            "not loaded.",
        )


def refuse_layers(config: Any) -> None:
    """Refuse layers that are no attention over rows of a cache, or that see them in chunks."""
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    recurrent = sorted(kinds.intersection(_RECURRENT_LAYER_TYPES))
    if recurrent:
        raise _recurrent(config, f"layers of type {', '.join(recurrent)}")
    other = sorted(kinds - set(_LAYER_TYPES))
    if not other and getattr(config, "attention_chunk_size", None) is not None:
        other = ["chunked_attention"]
    if other:
        raise ModelError(
            f"{config.model_type} has layers that pard-rt cannot run",
            f"layers of type {' or '.join(_LAYER_TYPES)}",
            ", ".join(other),
            "Use a decoder with plain attention layers.",
        )


def _recurrent(config: Any, actual: str) -> ModelError:
    return ModelError(
        f"{config.model_type} cannot forget a rejected proposal: its state cannot be rolled back",
        "a decoder that keeps nothing of its past but keys and values",
        actual,
        "Use a model whose layers are attention only, no Mamba, RWKV or convolution among them.",
    )


def refuse_moving_rope(config: Any, max_length: int) -> None:
    """Refuse rotary embeddings that change with the length within `max_length`.

    Keys cached under one length would be wrong under another: no cache could be kept.
    """
    config = config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters] if "rope_type" in parameters else list(parameters.values())
    for kind in kinds:
        if not isinstance(kind, dict) or kind.get("rope_type") not in ("dynamic", "longrope"):
            continue
        limit = kind.get("original_max_position_embeddings") or config.max_position_embeddings
        if max_length > limit:
            raise ModelError(
                f"The rotary embedding '{kind['rope_type']}' changes beyond {limit} positions",
                f"max_length <= {limit}",
                str(max_length),
                f"Pass max_length={limit}.",
            )
