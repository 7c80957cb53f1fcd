"""Bitseam: a vision-language model cut in two, with low-bit codes up and low-bit gradients down.

Client       the vision half and the images: ask, train, evaluate
Server       the language half, in a thread of this process
Stream       the seam alone, inside a PyTorch model of your own
load_recipe  what a run is, checked

Each is imported when it is first used, so that `import bitseam` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitseam.api.client import Client
    from bitseam.api.recipes import load_recipe
    from bitseam.api.server import Server
    from bitseam.api.stream import Stream

__all__ = ["Client", "Server", "Stream", "load_recipe"]
__version__ = "0.1.0"

_HOMES = {"Client": "client", "Server": "server", "Stream": "stream", "load_recipe": "recipes"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bitseam' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"bitseam.api.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
