"""Training parameters: one table that forms, documents, defaults and checks are drawn from."""
