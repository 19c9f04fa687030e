"""This is data of one's own: stripes that lie or stand, each drawn from its number."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

import softvq
from softvq.data.sources import Source


@softvq.register
@dataclass(frozen=True)
class Stripes(Source):
    count: int = 12
    side: int = 64

    @property
    def names(self):
        return [f"stripes-{number}.png" for number in range(self.count)]

    @property
    def labels(self):
        return [number % 2 for number in range(self.count)]

    @property
    def classes(self):
        return ["lying", "standing"]

    def read(self, index):
        wave = np.sin(np.arange(self.side) * (1 + index) / 8) * 127 + 128
        rows = np.broadcast_to(wave if index % 2 else wave[:, None], (self.side, self.side))
        file = io.BytesIO()
        Image.fromarray(rows.astype(np.uint8)).convert("RGB").save(file, "PNG")
        return file.getvalue()
