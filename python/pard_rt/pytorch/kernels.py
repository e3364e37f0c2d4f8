"""The kernels of a round for a device of PyTorch: loaded, and tried."""

from __future__ import annotations

import torch
from torch import Tensor

from pard_rt._core import (
    MAX_ROUND_ROWS,
    SLOT_RECORD_INTS,
    KernelSet,
    SamplingParams,
    choose,
    slot_sampling,
)
from pard_rt.code_objects import Driver, code_objects
from pard_rt.errors import ModelError


def open_kernels(device: torch.device) -> KernelSet:
    """Load the kernels of a round for a device.

    Raises
    ------
    RuntimeMissingError
        No driver, or no code object that it takes for the card.
    """
    driver: Driver = "host"
    if device.type != "cpu":
        driver = "hip" if torch.version.hip else "cuda"
    return KernelSet(driver, code_objects(driver))


def try_kernels(kernels: KernelSet, logits: Tensor) -> None:
    """Try whether kernels choose from rows, on their device, what `choose` chooses on the host.

    Parameters
    ----------
    kernels
        Those of the device.
    logits
        At most 64 rows [R, vocab_size], float32, float16 or bfloat16.

    Raises
    ------
    ModelError
        They do not: driver, compiler or card are not what the code object was built for.
    """
    device, position = logits.device, 17
    on_host = logits.cpu()

    def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    lengths = zeros(1, dtype=torch.int64).fill_(position)
    tokens, chosen, records = zeros(64), zeros(MAX_ROUND_ROWS), zeros(SLOT_RECORD_INTS)
    target_tokens = zeros(MAX_ROUND_ROWS, dtype=torch.int64)
    bad_draft, arrived = zeros(1), zeros(1)
    for params in (
        SamplingParams(),
        SamplingParams(temperature=0.8, seed=1 << 40),
        SamplingParams(temperature=1.3, top_k=40, top_p=0.9, min_p=0.01, seed=7),
    ):
        sampling = torch.frombuffer(bytearray(slot_sampling(params)), dtype=torch.uint8).to(device)
        kernels.choose_and_verify(
            logits=logits.data_ptr(),
            dtype=str(logits.dtype).removeprefix("torch."),
            row_stride=logits.stride(0),
            vocab_size=logits.shape[1],
            num_rows=len(logits),
            is_target=False,
            tokens=tokens.data_ptr(),
            lengths=lengths.data_ptr(),
            sampling=sampling.data_ptr(),
            capacity=len(tokens),
            target_tokens=target_tokens.data_ptr(),
            chosen=chosen.data_ptr(),
            bad_draft=bad_draft.data_ptr(),
            arrived=arrived.data_ptr(),
            records=records.data_ptr(),
            num_slots=1,
            stream=torch.cuda.current_stream().cuda_stream if device.type == "cuda" else 0,
        )
        expected = [choose(row, params, position + i) for i, row in enumerate(on_host)]
        actual = chosen[: len(logits)].tolist()
        if actual != expected:
            raise ModelError(
                f"The kernels choose other tokens on {device} than the host",
                f"{expected} with {params.temperature} as temperature",
                str(actual),
                "Report the card and its driver; decode with device='cpu' meanwhile.",
            )
