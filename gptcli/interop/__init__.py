"""Files of other programs that hold the same models: Hugging Face directories and GGUF."""
