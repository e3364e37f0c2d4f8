"""PyTorch models: the transformers seam and the `Model` built on it."""
