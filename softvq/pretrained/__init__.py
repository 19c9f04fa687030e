"""Pretrained networks of other people, frozen: features, teachers and perceptual distances, by name."""

from softvq.pretrained.features import NETWORKS, FeatureNetwork
from softvq.pretrained.named import PERCEPTUAL, TEACHERS, Named

__all__ = ["NETWORKS", "PERCEPTUAL", "TEACHERS", "FeatureNetwork", "Named"]
