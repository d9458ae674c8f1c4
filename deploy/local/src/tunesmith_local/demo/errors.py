"""What ends the demonstration early."""


class DemoFailed(Exception):
    """The demonstration did not come to its end; the message says where it stopped."""
