"""What goes wrong within the process of a model, as it is told to the service."""


class GenerationError(Exception):
    """An answer cannot be given. reason is a stable word for programs."""

    def __init__(self, message: str, *, reason: str = "GENERATION_FAILED") -> None:
        super().__init__(message)
        self.reason = reason


class ConversationRefused(GenerationError):
    """The conversation is at fault: too long, or not in an order that the chat template knows."""

    def __init__(self, message: str, *, reason: str = "CONVERSATION_REFUSED") -> None:
        super().__init__(message, reason=reason)
