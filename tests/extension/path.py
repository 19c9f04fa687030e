"""This adds a path that keeps the variance and turns faster near the noise, and times that avoid both of its ends."""

import math

import torch

from softvq.transports.paths import PATHS, TIMES, Coefficients


def turning(t):
    angle, speed = math.pi / 4 * (t + t**2), math.pi / 4 * (1 + 2 * t)
    alpha, sigma = torch.cos(angle), torch.sin(angle)
    return Coefficients(alpha, sigma, -speed * sigma, speed * alpha)


PATHS["turning"] = turning
TIMES["middle"] = lambda path, normal: torch.sigmoid(normal)
