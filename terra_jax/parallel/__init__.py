"""The device mesh and where the parameters, their moments and their averages lie on it."""
