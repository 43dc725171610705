"""Stores on their way to other people: packed into one file, unpacked, uploaded, opened where they are."""
