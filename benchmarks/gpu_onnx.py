"""ONNX Runtime's provider on a card: the demo pair, tokens chosen on the device and on the host."""

from __future__ import annotations

import time
from statistics import median
from typing import Literal

import pard_rt
from gpu_models import Json
from pard_rt.code_objects import Driver, code_objects
from pard_rt.hub import locate

Provider = Literal["cuda", "rocm", "cpu"]
Decoded = tuple[list[list[int]], float]  # texts, and seconds per round

DRIVERS: dict[Provider, Driver] = {"cuda": "cuda", "rocm": "hip", "cpu": "host"}
NAMES: dict[str, Provider] = {"CUDAExecutionProvider": "cuda", "ROCMExecutionProvider": "rocm"}
PROMPTS = [list(text.encode()) for text in ("def add(", "class Reader:\n", "import os\n\n\ndef ")]
SAMPLINGS = (
    pard_rt.SamplingParams(),
    pard_rt.SamplingParams(temperature=0.8, top_p=0.95, seed=7),
)


def provider_here() -> Provider | None:
    """Return the provider that the ONNX Runtime found first has for a card."""
    try:
        _, _, providers = pard_rt.onnxruntime_providers()
    except pard_rt.RuntimeMissingError:
        return None
    return next((NAMES[name] for name in providers if name in NAMES), None)


def decode_demo(provider: Provider, new_tokens: int, turns: int) -> Json:
    """Decode plainly and with K = 8, choosing where the logits are and on the host."""
    expected, _ = decode(provider, False, 0, new_tokens, turns)
    found: Json = {"provider": provider}
    equal = 0
    for on_device in (True, False):
        texts, seconds = decode(provider, on_device, 8, new_tokens, turns)
        pairs = [pair for own, other in zip(texts, expected, strict=True)
                 for pair in zip(own, other, strict=True)]  # fmt: skip
        equal += sum(a == b for a, b in pairs)
        found[f"seconds per round, chosen on the {'device' if on_device else 'host'}"] = seconds
    return found | {"equal tokens": equal / (2 * sum(map(len, expected)))}


def decode(provider: Provider, on_device: bool, k: int, new_tokens: int, turns: int) -> Decoded:
    """Decode every prompt greedily and sampled."""
    target = open_there("demo", provider, on_device)
    drafter = None
    if k > 0:
        draft = open_there("demo/parallel", provider, on_device)
        mask = draft.contract.mask_token_id
        assert mask is not None
        drafter = pard_rt.ParallelDrafter(draft, mask)
    seconds = []
    for _ in range(turns + 1):  # the first one warms
        decoder = pard_rt.Decoder(target, drafter, num_speculative_tokens=k)
        sequences = [
            decoder.add(prompt, max_new_tokens=new_tokens, sampling=sampling)
            for prompt in PROMPTS
            for sampling in SAMPLINGS
        ]
        began = time.perf_counter()
        decoder.run()
        seconds.append((time.perf_counter() - began) / decoder.counts.rounds)
    return [sequence.generated.tolist() for sequence in sequences], median(seconds[1:])


def open_there(name: str, provider: Provider, on_device: bool) -> pard_rt.OnnxModel:
    """Open a model of the demo."""
    options = {"use_tf32": "0"} if provider == "cuda" else {}  # float32 is to be float32
    model = pard_rt.OnnxModel(
        locate(name), provider=provider, provider_options=options, device_memory=True
    )
    if on_device:
        driver = DRIVERS[provider]
        model.choose_on_device(driver, code_objects(driver))
    return model
