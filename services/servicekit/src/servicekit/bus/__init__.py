"""The event bus of the platform, on NATS JetStream."""

from servicekit.bus.event_bus import EventBus
from servicekit.bus.messages import Message, Outgoing
from servicekit.bus.pull_consumer import PullConsumer

__all__ = ["EventBus", "Message", "Outgoing", "PullConsumer"]
