"""The parts of the accuracy benchmark, `tools/bench/accuracy.py`."""
