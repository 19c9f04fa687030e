"""The finding of images among files: Pillow is asked, by an ending where that says enough, else by the first bytes."""

import mimetypes
from collections.abc import Callable
from functools import lru_cache

from PIL import Image, ImageFile

HEAD = 16  # bytes of a file, by which Pillow knows most formats
_SYSTEM = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "thumbs.db"}
_SYSTEM |= {"desktop.ini", "icon\r"}  # what systems leave in folders and archives


def is_hidden(path: str) -> bool:
    """Return True when a path is of a hidden or a system's file, or lies in such a folder: `._a.png`, `__MACOSX/…`."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return any(part[0] == "." or part.casefold() in _SYSTEM for part in parts)


class ImageFinder:
    """The answer to which of many files are images, and a count of those that are not, by ending.

    `left_out` has the number of files of each ending that Pillow cannot open. A file whose ending says nothing is
    looked into.
    """

    def __init__(self):
        self.left_out: dict[str, int] = {}

    def is_image(self, name: str, head: Callable[[], bytes]) -> bool:
        """Return True when Pillow can open such a file; `head` returns the beginning of one whose name says nothing."""
        base = name.rpartition("/")[2]
        ending = "." + base.rpartition(".")[2].lower() if "." in base else ""
        known = _by_ending(ending)
        if known is None:
            start = head()[:HEAD]
            known = any(_opens(kind, start) for kind in Image.OPEN)
        if not known:
            self.leave_out(ending)
        return known

    def leave_out(self, ending: str) -> None:
        """Count a file of this ending as left out."""
        self.left_out[ending] = self.left_out.get(ending, 0) + 1


@lru_cache(4096)
def _by_ending(ending: str) -> bool | None:
    """Return True or False when a file's ending says whether Pillow can open it, None when the file must be asked."""
    kind, _ = mimetypes.MimeTypes().guess_type(f"file{ending}")
    if kind is not None and not kind.startswith("image/"):
        return False
    Image.init()
    return True if _decodes(Image.registered_extensions().get(ending, "")) else None


def _decodes(kind: str) -> bool:
    """Return False for formats that Pillow does not know, or knows and never decodes."""
    factory, _ = Image.OPEN.get(kind, (None, None))
    return factory is not None and not (isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile))


def _opens(kind: str, start: bytes) -> bool:
    """Return True when a format's files begin like this."""
    _, accept = Image.OPEN[kind]
    try:
        verdict = accept is not None and accept(start)
    except Exception:  # of a format, perhaps a plugin's, that wants to see more than there is
        return False
    return bool(verdict) and not isinstance(verdict, str) and _decodes(kind)  # a text says what is not installed
