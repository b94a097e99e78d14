"""From a Flax checkpoint to a Hugging Face repo: leaves -> plan -> codes and scales -> format -> repo."""
