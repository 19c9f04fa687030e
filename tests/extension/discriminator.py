"""This is a discriminator of one's own: three convolutions that read the images themselves."""

from dataclasses import dataclass

from torch import nn

import softvq


@softvq.register
@dataclass(frozen=True)
class SmallConfig(softvq.DiscriminatorConfig):
    channels: int = 8

    def build(self, width):
        return Small(self.channels)


class Small(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels, 4, stride=4),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 1, 1),
        )

    def forward(self, readouts):
        return self.layers(readouts[0]).flatten(1)
