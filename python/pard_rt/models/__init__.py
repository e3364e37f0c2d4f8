"""Models: find what a user names, read what it says of itself, open it."""

from pard_rt.models.find import locate
from pard_rt.models.open import Source, format_of, open_model
from pard_rt.models.opened import OpenedModel
from pard_rt.models.options import Backend, OpenOptions

__all__ = [
    "Backend",
    "OpenOptions",
    "OpenedModel",
    "Source",
    "format_of",
    "locate",
    "open_model",
]
