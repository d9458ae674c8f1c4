"""What workers say about their attempts, and how it becomes the record."""
