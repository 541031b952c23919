"""The engine that writes text: sequences, keys and values, sampling, constraints."""
