"""One claim of the literature a file, each with controls and intervals; benchmarks beside."""
