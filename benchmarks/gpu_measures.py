"""What is read off clocks, the profiler and memory counters."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def seconds_per_call(
    run: Callable[[], object], device: torch.device, calls: int = 20, turns: int = 5
) -> float:
    """Time calls made back to back, so that the device need not wait for the host."""
    run()
    times = []
    for _ in range(turns):
        wait(device)
        began = time.perf_counter()
        for _ in range(calls):
            run()
        wait(device)
        times.append((time.perf_counter() - began) / calls)
    return median(times)


# Idle ---------------------------------------------------------------------------------------------


def idle_share(intervals: Iterable[tuple[float, float]], shortest_gap: float = 0.0) -> float:
    """Share of the time from the first start to the last end that no interval covers.

    Parameters
    ----------
    intervals
        Starts and ends, in any order; they may overlap.
    shortest_gap
        Shorter gaps count as covered.
    """
    ordered = sorted(intervals)
    if not ordered:
        raise RuntimeError("the profiler saw no work of the device")
    begin, covered_until = ordered[0][0], ordered[0][0]
    idle = 0.0
    for start, end in ordered:
        gap = start - covered_until
        if gap > 0 and gap >= shortest_gap:
            idle += gap
        covered_until = max(covered_until, end)
    return idle / max(covered_until - begin, 1e-9)


def trace(run: Callable[[], object], device: torch.device) -> list[tuple[float, float]]:
    """Run under the profiler: when the device began and ended its work, in microseconds.

    A device's work is kernels and copies. On a CPU it is operators, which says nothing: what runs
    between them is work too.
    """
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        run()
        wait(device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return [
        (event.time_range.start, event.time_range.end)
        for event in seen.events() or ()
        if event.device_type == kind and not event.is_user_annotation
    ]


# Memory -------------------------------------------------------------------------------------------


def memory(device: torch.device) -> dict[str, int]:
    """Bytes of the device and of the process; what there is no device for is left out."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    found: dict[str, Any] = {"resident on the host": pages * os.sysconf("SC_PAGE_SIZE")}
    if device.type == "cuda":
        found["allocated"] = torch.cuda.memory_allocated(device)
        found["reserved"] = torch.cuda.memory_reserved(device)
    return found
