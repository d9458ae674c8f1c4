"""Object stores: the port that services see, and how a URL opens one."""

from servicekit.objects.opening import directory_of, open_object_store, redacted_url
from servicekit.objects.store import ObjectInfo, ObjectStore

__all__ = ["ObjectInfo", "ObjectStore", "directory_of", "open_object_store", "redacted_url"]
