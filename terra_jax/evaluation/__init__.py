"""How good frozen features are: scores on arrays and iterators, no files, no family."""
