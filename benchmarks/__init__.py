"""Speed, as ratios within one run: what a design gains, not how fast a machine is.

make benchmarks runs them all and writes their tables to benchmarks/results/.
"""
