"""The verbs of `convert_flax.py`: each module has a `run`, and is imported only when its verb was asked for."""
