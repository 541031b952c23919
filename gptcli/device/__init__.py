"""What the machine is and can do, resolved once into a frozen Runtime that is passed to whoever computes."""
