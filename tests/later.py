"""Modules that take seconds to import, imported when a test first uses them."""

from importlib import import_module
from typing import Any


class Later:
    """Stands for a module. Each of pytest's processes collects all files, and runs a part of them alone."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith(("_", "pytest")):  # what pytest asks of all that it finds in a file
            raise AttributeError(attribute)
        return getattr(import_module(self._name), attribute)
