"""Records of runs, published numbers, and the tables made of both; imports nothing else of ours, no torch."""
