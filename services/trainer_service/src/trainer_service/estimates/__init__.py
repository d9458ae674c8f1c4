"""What a training will need before it starts: memory, disk, checkpoints, time. Nothing here loads torch."""
