"""Models: find what a user names, read what it says of itself, open it."""
