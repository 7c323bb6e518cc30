"""Trained models over rasters: GeoTIFF in, GeoTIFF or tokens out, georeference kept."""
