"""ONNX Runtime's provider on a card: the demo pair, tokens chosen on the device and on the host."""

from __future__ import annotations

import time
from statistics import median
from typing import Literal

import pard_rt
from gpu_models import Json
from pard_rt.code_objects import code_objects, driver_of
from pard_rt.models.find import locate

Provider = Literal["cuda", "rocm", "cpu"]
Decoded = tuple[list[list[int]], float]  # texts, and seconds per round

PROVIDERS: tuple[Provider, ...] = ("cuda", "rocm")  # the demo's graphs are not MIGraphX's
PROMPTS = [list(text.encode()) for text in ("def add(", "class Reader:\n", "import os\n\n\ndef ")]
SAMPLINGS = (
    pard_rt.SamplingParams(),
    pard_rt.SamplingParams(temperature=0.8, top_p=0.95, seed=7),
)


def runtime_here() -> tuple[str, Provider | None]:
    """Return the version of the ONNX Runtime found first, and its provider for a card."""
    try:
        _, version, providers = pard_rt.onnxruntime_providers()
    except pard_rt.RuntimeMissingError:
        return "none", None
    return version, next((name for name in PROVIDERS if name in providers), None)


def decode_demo(provider: Provider | None, new_tokens: int, turns: int) -> Json:
    """Decode plainly and with K = 8, choosing where the logits are and on the host."""
    if provider is None:
        return {"provider": "none: no ONNX Runtime here has cuda or rocm"}
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
        model.choose_on_device(code_objects(driver_of(provider)))
        model.probe()  # reads rows too
    return model
