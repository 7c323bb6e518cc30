"""Puts this folder on the path (pytest does, for every conftest), so that tests below share `fakes`."""
