"""Runs of TerraMind's tokenizers."""
