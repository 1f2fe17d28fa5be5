"""Shared modules of the speed benchmarks: vs_trl.py compares with TRL, growth.py varies one dimension at a time."""
