"""The kernels of a round as the package has them: built ahead of time, for cards and drivers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, TypeAlias

Driver: TypeAlias = Literal["host", "cuda", "hip"]

_FOLDER = Path(__file__).parent / "gpu"


def driver_of(provider: str) -> Driver:
    """Name the driver under a provider of ONNX Runtime."""
    return "host" if provider == "cpu" else "cuda" if provider == "cuda" else "hip"


def code_objects(driver: Driver) -> list[str]:
    """List the code objects built for a driver, those for one card alone before generic ones.

    A driver refuses what was built for other cards, so the first that it takes is the card's.
    """
    if driver == "cuda":
        built = sorted(_FOLDER.glob("sm_*.cubin"), key=_architecture, reverse=True)
        return [str(path) for path in (*built, *sorted(_FOLDER.glob("*.ptx")))]
    if driver == "hip":
        names = sorted(path.name for path in _FOLDER.glob("*.hsaco"))
        return [str(_FOLDER / name) for name in sorted(names, key=lambda name: "generic" in name)]
    return []


def _architecture(path: Path) -> int:
    return int(re.sub(r"\D", "", path.stem))
