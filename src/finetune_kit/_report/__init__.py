"""Evaluation of trained models: metrics, reports, comparisons and heat maps."""
