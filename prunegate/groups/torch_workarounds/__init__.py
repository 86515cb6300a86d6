"""Ways around what torch does not offer: copies, models without data, fused kernels switched off."""
