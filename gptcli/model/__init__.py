"""The GPT, from ids (B, T) to logits (B, T, V), and its parts."""
