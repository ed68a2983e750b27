"""Functions by their names: those of `minillm`, and the user's own."""

import importlib
import os
import sys
from typing import Any


def find_object(name: str) -> Any:
    """`"package.module:attribute"` -> that object, imported; also from this folder.

    A module in this folder is read again each time: it may have been edited.
    """
    module, _, attribute = name.partition(":")
    here = see_this_folder()
    file = getattr(sys.modules.get(module), "__file__", None)
    if file and os.path.dirname(file) == here:
        del sys.modules[module]
    importlib.invalidate_caches()
    try:
        return getattr(importlib.import_module(module), attribute or module)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} is not module:function: {error}") from None


def see_this_folder() -> str:
    """Let modules in this folder be imported: a program's own path excludes it."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    return here
