"""Any source to a dataset of records: `terra-jax prepare`."""
