"""A miniature of the paper's zoo of checkpoints, trained from nothing in minutes."""

from modelglue.minizoo.preset import Preset, presets
from modelglue.minizoo.zoo import Zoo, ZooModel, train_zoo

__all__ = ["Preset", "Zoo", "ZooModel", "presets", "train_zoo"]
