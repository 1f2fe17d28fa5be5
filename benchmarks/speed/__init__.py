"""What the benchmarks of speed are made of: vs_trl.py compares, and growth.py varies one thing at a time."""
