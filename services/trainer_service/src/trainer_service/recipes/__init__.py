"""Training recipes: a job directory in, events out. They run under a worker, from a shell, or in a test alone."""
