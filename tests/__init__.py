"""Tests that need more than one member."""
