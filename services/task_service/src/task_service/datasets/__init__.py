"""Uploaded datasets: immutable versions, each a file in the object store and a row that knows its hash."""
