"""What a machine can do, and what a run takes of it."""
