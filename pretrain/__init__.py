"""Pretraining: one file a method, each the paper's algorithm from top to bottom."""
