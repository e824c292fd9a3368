"""Serve models behind the OpenAI wire: models and chat completions over the local contender."""
