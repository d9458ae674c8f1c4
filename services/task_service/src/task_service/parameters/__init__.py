"""The table of parameters over gRPC."""
