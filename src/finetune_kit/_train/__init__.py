"""From specs to a trained model."""
