"""From raw archives to batches: sources, samples, recipes, loader. Knows nothing of models and never imports JAX."""
