"""Imports next to nothing, so that a fork server of the tests is warm at once."""
