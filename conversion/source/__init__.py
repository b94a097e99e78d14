"""Flax checkpoints, and what else a conversion reads: leaves on demand, their int4 grid, donors, downloads."""
