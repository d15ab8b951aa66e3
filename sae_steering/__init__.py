"""Is the reasoning already in the base model's features? Arrives with its own release."""
