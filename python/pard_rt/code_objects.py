"""The kernels of a round as the package has them: built ahead of time, for cards and drivers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, TypeAlias

Driver: TypeAlias = Literal["host", "cuda", "hip"]

_FOLDER = Path(__file__).parent / "gpu"


def code_objects(driver: Driver) -> list[str]:
    """List the code objects built for a driver, those for one card alone before generic ones.

    A driver refuses what was built for other cards, so the first that it takes is the card's.
    """
    if driver == "cuda":
        built = sorted(_FOLDER.glob("sm_*.cubin"), key=_architecture, reverse=True)
        return [str(path) for path in (*built, *sorted(_FOLDER.glob("*.ptx")))]
    if driver == "hip":
        return sorted(map(str, _FOLDER.glob("*.hsaco")), key=lambda path: "generic" in path)
    return []


def _architecture(path: Path) -> int:
    return int(re.sub(r"\D", "", path.stem))
