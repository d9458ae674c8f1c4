"""What the child of an export does, one module for each kind of result."""
