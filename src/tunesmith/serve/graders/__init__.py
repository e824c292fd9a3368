"""Graders: (what a model answered, the data row) -> a score, as OpenAI's fine-tuning and evals describe them."""
