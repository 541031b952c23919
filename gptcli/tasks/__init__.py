"""Fine-tuning tasks: what a row means, what is learnt from it, and how it is validated."""
