"""A user's own problem through all methods, and what to use."""
