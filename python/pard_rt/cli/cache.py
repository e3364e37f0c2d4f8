"""`pard-rt cache`: what is kept of GGUF files."""

from __future__ import annotations

import argparse

from pard_rt.cli.output import format_bytes
from pard_rt.models.converted import cache_folder, clear_conversions, conversions
from pard_rt.models.find import folder_size


def run_cache(arguments: argparse.Namespace) -> int:
    """List the conversions, or remove them."""
    sizes = {folder: folder_size(folder) for folder in conversions()}
    for folder, size in sizes.items():
        print(f"{format_bytes(size):>8}  {folder}")
    if arguments.action == "clear":
        clear_conversions()
        print(f"removed {format_bytes(sum(sizes.values()))} from {cache_folder()}")
    elif not sizes:
        print(f"nothing in {cache_folder()}")
    return 0
