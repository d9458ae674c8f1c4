"""Shared infrastructure of the Tunesmith services."""
