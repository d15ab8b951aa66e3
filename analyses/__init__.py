"""One claim of the literature a file, each with its controls and intervals; benchmarks beside them."""
