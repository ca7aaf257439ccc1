"""Using a trained model: predictions for sequences and intervals."""
