"""Where the C++ side of this package lies: headers, a static library, CMake's package files."""

from __future__ import annotations

from pathlib import Path

from pard_rt.errors import RuntimeMissingError

__all__ = ["get_cmake_dir"]


def get_cmake_dir() -> str:
    """Return the directory that CMake's ``find_package(pard_rt)`` has to be shown.

    Raises
    ------
    RuntimeMissingError
        It is not there: this is no installed package but a source tree, or a part of one.
    """
    path = Path(__file__).parent / "lib" / "cmake" / "pard_rt"
    if not (path / "pard_rt-config.cmake").is_file():
        raise RuntimeMissingError(
            "The C++ library of pard-rt is not installed",
            f"pard_rt-config.cmake in '{path}'",
            "none",
            "Install the package itself, not in editable mode: pip install . in a checkout.",
        )
    return str(path)
