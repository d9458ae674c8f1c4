"""The worker: takes tasks off the queue and brings each attempt to exactly one end."""
