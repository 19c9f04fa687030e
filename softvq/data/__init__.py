"""Images and latents to train on. Importing this package registers the built-in sources."""

from softvq.data.images import Augment, center_crop, fit, open_image, to_bytes, to_image, to_tensor
from softvq.data.sources import Folder, HubDataset, Shards, Source, TarFile, open_listed

__all__ = [
    "Augment",
    "Folder",
    "HubDataset",
    "Shards",
    "Source",
    "TarFile",
    "center_crop",
    "fit",
    "open_image",
    "open_listed",
    "to_bytes",
    "to_image",
    "to_tensor",
]
