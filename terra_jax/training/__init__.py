"""The trainer: it knows the Objective contract and no model family."""
