"""This adds a feature network that evaluations can use: convolutions with random but fixed weights."""

import torch
from torch import nn

from softvq.pretrained.features import NETWORKS, FeatureNetwork

NAME, SIDE, WIDTH = "random-convolutions", 32, 16


def random_convolutions(resizing, file):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, WIDTH, 5, stride=2), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 5, stride=2)
    return FeatureNetwork(NAME, nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), SIDE, WIDTH, "clean")


NETWORKS[NAME] = random_convolutions
