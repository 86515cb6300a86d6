"""From what a run said of channels to channel groups."""
