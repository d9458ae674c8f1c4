"""/ws/training: what happens to tasks, over WebSockets (RFC 6455)."""
