"""The command line: the Click group, the console, and one module for every subcommand."""
