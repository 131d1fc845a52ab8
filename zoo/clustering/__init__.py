"""The mathematics of clustering features: whitening, k-means, matching and scores, as free functions."""
