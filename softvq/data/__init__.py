"""Images and latents to train on. Importing this package registers the built-in sources."""

from softvq.data.datasets import HubDataset
from softvq.data.images import Augment, center_crop, fit, open_image, to_bytes, to_image, to_tensor
from softvq.data.labels import UNLABELLED
from softvq.data.objects import Objects
from softvq.data.opening import listing, open_source, with_columns
from softvq.data.shards import Shards, TarFile
from softvq.data.sources import Folder, Source

__all__ = [
    "UNLABELLED",
    "Augment",
    "Folder",
    "HubDataset",
    "Objects",
    "Shards",
    "Source",
    "TarFile",
    "center_crop",
    "fit",
    "listing",
    "open_image",
    "open_source",
    "to_bytes",
    "to_image",
    "to_tensor",
    "with_columns",
]
