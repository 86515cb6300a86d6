"""Callbacks for other people's trainers; each needs the extra of its module's name.

`prunegate.integrations.lightning` and `prunegate.integrations.transformers` are imported by name only, so that
neither framework has to be there for the other.
"""
