"""What decodes: our own torch engine, llama.cpp, or a server at a URL, behind one interface."""
