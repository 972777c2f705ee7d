"""GPUs that are not there, from a count, a name or a file."""
