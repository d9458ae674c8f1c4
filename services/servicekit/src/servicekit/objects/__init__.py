"""Object stores: the port that services see, and how a URL opens one."""

from servicekit.objects.opening import open_object_store, redacted_url
from servicekit.objects.store import ObjectInfo, ObjectStore

__all__ = ["ObjectInfo", "ObjectStore", "open_object_store", "redacted_url"]
