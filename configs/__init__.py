"""Configs of runs, installed as `terra_jax.configs`: one short file each, `get_config()` returns it."""
