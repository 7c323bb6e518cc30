"""Geometry on the host: where views are cut, as numbers."""
