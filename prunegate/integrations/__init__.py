"""Callbacks for trainers of other libraries; each needs the extra with its module's name.

`prunegate.integrations.lightning` and `prunegate.integrations.transformers` have to be imported explicitly, so that
neither needs the other's framework.
"""
