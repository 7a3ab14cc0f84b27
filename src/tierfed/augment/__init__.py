"""Data that devices get beside their own before round 1: samples that the cloud shares, or samples of a generator."""

from tierfed.augment.augmentation import Augmentation, augment, label_distance
from tierfed.augment.settings import AugmentSettings, GanSettings
from tierfed.augment.warmup import warm

__all__ = ["AugmentSettings", "Augmentation", "GanSettings", "augment", "label_distance", "warm"]
