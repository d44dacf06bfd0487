"""TensorFlow Serving, or the embedded server that speaks its API, over a folder of published models."""
