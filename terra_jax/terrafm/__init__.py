"""TerraFM: contrastive encoder of Sentinel-1 and Sentinel-2 (arXiv 2506.06281)."""
