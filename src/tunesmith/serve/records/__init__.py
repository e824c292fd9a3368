"""What the server keeps in the database, one module a kind of object. Every query names the owner."""
