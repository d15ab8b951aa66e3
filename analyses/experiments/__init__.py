"""Arms times seeds: runs that are kept as lines, and figures and verdicts drawn from the lines."""
