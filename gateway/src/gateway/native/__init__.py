"""The native API, transcoded from the gRPC contracts."""
