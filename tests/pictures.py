"""A few of the bundled images as a folder: a run on all of them ends with minutes of statistics of their latents."""

from pathlib import Path

from softvq.data.opening import open_source


def few_emoji(folder: Path, each: int = 2) -> Path:
    """Write `each` of the validation images of each of the nine classes into a new folder, and return it."""
    source = open_source("emoji-val")
    for label, name in enumerate(source.classes):
        (folder / name).mkdir(parents=True)
        for index in [i for i, found in enumerate(source.labels) if found == label][:each]:
            (folder / source.names[index]).write_bytes(source.read(index))
    return folder
