"""Tables and names in Markdown, whatever characters are in them."""

import re
from typing import Any


class Markdown(str):
    """Text that is Markdown already."""


def table(columns: dict[str, list[Any]]) -> list[str]:
    """Return a Markdown table; columns without a figure are left out."""
    kept = {name: cells for name, cells in columns.items() if any(cell not in (None, "") for cell in cells)}
    rows = zip(*kept.values(), strict=True)
    text = ["| " + " | ".join(kept) + " |", "|" + "---|" * len(kept)]
    return [*text, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows), ""]


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, Markdown) else escaped(str(value))


def one_line(text: str) -> str:
    """Return text on one line, as it can be written to a file: names come from folders and files of all kinds."""
    return " ".join(text.split()).encode("utf-8", "replace").decode()


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is; between letters "_" means nothing."""
    text = re.sub(r"[\\`*\[\]<>|~&$]", r"\\\g<0>", one_line(text))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def code(text: str) -> Markdown:
    """Return text as Markdown's code, in which a table's "|" alone means something."""
    text = one_line(text).replace("|", "\\|") or " "
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{fence}{space}{text}{space}{fence}")
