"""What the server answers, one module a resource; each ends in its list of routes."""
