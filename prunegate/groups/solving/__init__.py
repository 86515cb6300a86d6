"""Solving the constraints of the runs for channel groups."""
