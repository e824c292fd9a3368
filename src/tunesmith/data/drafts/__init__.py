"""New rows drafted by a teacher, checked, and put into review."""
