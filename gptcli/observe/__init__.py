"""Looking at runs and before them: history, curves, plans, memory."""
