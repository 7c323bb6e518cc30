"""Layers that families share; knows no family."""
