"""The nouns that all runs share: backbones, data sets, views, checkpoints, clustering."""
