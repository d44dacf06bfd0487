"""TensorFlow Serving, or the embedded server that speaks its API, over a folder of published models."""

from frostline.serving.backends import BACKENDS, Server, choose, running, serve

__all__ = ["BACKENDS", "Server", "choose", "running", "serve"]
