"""What a person types: the Click group, the console, and one module for every subcommand."""
