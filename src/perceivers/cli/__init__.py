"""The command line: a table of verbs and their arguments, nothing else."""
