"""TerraMind: tokenizers of single modalities (arXiv 2504.11171; public TerraTorch code)."""
