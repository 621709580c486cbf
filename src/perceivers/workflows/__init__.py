"""What a user wants done: the same functions stand behind Python and the command line."""
