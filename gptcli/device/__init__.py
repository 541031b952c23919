"""The machine and what it can do, resolved once into a frozen Runtime that is passed to whoever computes."""
