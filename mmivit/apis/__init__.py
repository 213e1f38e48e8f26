"""From a config: train, test, predict."""
