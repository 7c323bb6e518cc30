"""What one batch of each objective is."""
