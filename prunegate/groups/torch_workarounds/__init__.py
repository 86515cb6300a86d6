"""Workarounds for what torch does not offer: copies, models without data, disabling fused kernels."""
