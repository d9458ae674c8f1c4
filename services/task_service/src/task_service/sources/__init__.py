"""The tasks that evaluations and exports start from: what they have produced, and that it stays while it is needed."""
