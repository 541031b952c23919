"""What runs have written about themselves: read, compared and drawn."""
