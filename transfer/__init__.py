"""Evaluation by fine-tuning: one file a protocol."""
