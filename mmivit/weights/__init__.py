"""Weights: read safely, recognised, converted, published. Import from its modules."""
