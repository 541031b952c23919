"""Models to and from other programs: Hugging Face and GGUF."""
