"""Wall time against the public tools, in the same run."""
