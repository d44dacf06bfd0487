"""What a TensorFlow Serving needs to serve a folder of exports, and how a new version reaches those who ask it."""

from frostline.deploy.bundling import bundle, describe, published
from frostline.deploy.config import Served
from frostline.deploy.rollout import Server, Step, back, finish, forward, promote, take, versions

__all__ = [
    "Served",
    "Server",
    "Step",
    "back",
    "bundle",
    "describe",
    "finish",
    "forward",
    "promote",
    "published",
    "take",
    "versions",
]
