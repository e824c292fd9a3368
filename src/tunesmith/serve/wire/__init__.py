"""Bodies of OpenAI's wire: what is read of a request, what an answer looks like, and errors."""
