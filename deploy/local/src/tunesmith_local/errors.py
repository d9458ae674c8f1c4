"""Why a platform cannot start."""


class CannotStart(Exception):
    """The platform cannot start; the message says why and what to do."""
