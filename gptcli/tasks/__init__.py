"""Fine-tuning tasks as data: rows in, token ids and what of them is learnt out. No torch."""
