"""Retrieval: documents to passages, an index of them on disk, and the passages nearest to a question."""
