"""What protects devices: differential privacy, and sums whose terms nobody sees."""
