"""Parts of `tools/zoo.py`: the models, one run of one model, the peer, and the table."""
