"""The demo detector: a generator of synthetic scenes and the training that made its checkpoint."""
