"""TerraFM runs; `base` documents every key."""
