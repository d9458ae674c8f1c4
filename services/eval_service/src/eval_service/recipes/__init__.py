"""What an evaluation's child process does: it knows files and events, and nothing of the platform."""
