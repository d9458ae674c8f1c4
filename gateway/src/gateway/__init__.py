"""HTTP, SSE and the documented surfaces in front of the services."""
