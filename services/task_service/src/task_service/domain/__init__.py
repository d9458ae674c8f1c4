"""The rules of a task's life: no wire format, no database, no clock."""
