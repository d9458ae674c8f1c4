"""Checkpoint quotas: what users may store in a month, counted with each checkpoint's row."""
