"""One process per contestant of `benchmarks/peers.py`: each trains a round when it is told to."""
