"""JSON objects and query parameters to protobuf messages, every problem listed with the path of its field."""

from collections.abc import Iterable
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from gateway.native.encode import is_map
from gateway.native.scalars import from_json, from_text, hint, shown, well_known
from servicekit.errors import Problem


@cache
def fields_by_name(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """The fields of a message by their names in the .proto file and by their JSON names."""
    fields = {field.json_name: field for field in descriptor.fields}
    return {**fields, **{field.name: field for field in descriptor.fields}}


def is_well_known(descriptor: Any) -> bool:
    """Whether a message type has a JSON form of its own."""
    return bool(descriptor.file.package == "google.protobuf")


class Decoder:
    """Fills messages and collects what is wrong; look at problems when done."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def message(self, message: Message, document: Any, path: str = "") -> None:
        """Fills a message from a JSON object."""
        if is_well_known(message.DESCRIPTOR):
            self._try(path, well_known, message, document)
        elif not isinstance(document, dict):
            self._problem(path, f"an object was expected, not {shown(document)}")
        else:
            self._object(message, document, f"{path}." if path else "")

    def query(self, message: Message, pairs: Iterable[tuple[str, str]], taken: Iterable[str] = ()) -> None:
        """Fills a message from query parameters; taken are the fields that the path has set already."""
        seen = set(taken)
        for path, text in pairs:
            try:
                self._parameter(message, path, text, seen)
            except ValueError as error:
                self._problem(path, str(error))

    def variable(self, message: Message, path: str, text: str) -> None:
        """Fills one field, which may be nested, from a variable of the URL's path. A body must not say otherwise."""
        *parents, name = path.split(".")
        for parent in parents:
            message = getattr(message, parent)
        field = message.DESCRIPTOR.fields_by_name[name]
        given = getattr(message, name)
        self._try(path, _set, message, field, text)
        if given not in (field.default_value, getattr(message, name)):
            self._problem(path, f"the path says {shown(text)}")

    def _problem(self, path: str, message: str) -> None:
        self.problems.append(Problem(path, message))

    def _try(self, path: str, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ValueError as error:
            self._problem(path, str(error))
            return None

    def _object(self, message: Message, document: dict[str, Any], prefix: str) -> None:
        known = fields_by_name(message.DESCRIPTOR)
        given: dict[str, str] = {}
        for name, value in document.items():
            path, field = f"{prefix}{name}", known.get(name)
            if field is None:
                self._problem(path, f"unknown field{hint(name, message.DESCRIPTOR.fields_by_name)}")
            elif (other := given.setdefault(field.name, name)) != name:
                self._problem(path, f"given twice, as {other} too")
            elif value is not None or self._takes_null(field):
                self._one_of(field, name, path, given)
                self._field(message, field, value, path)

    @staticmethod
    def _takes_null(field: FieldDescriptor) -> bool:
        kind = field.message_type
        return kind is not None and kind.full_name == "google.protobuf.Value" and not field.is_repeated

    def _one_of(self, field: FieldDescriptor, name: str, path: str, given: dict[str, str]) -> None:
        group = field.containing_oneof
        if group is None or len(group.fields) == 1:
            return
        if (other := given.setdefault(f"oneof {group.name}", name)) != name:
            self._problem(path, f"{other} is given too; only one of {', '.join(f.name for f in group.fields)} may be")

    def _field(self, message: Message, field: FieldDescriptor, value: Any, path: str) -> None:
        if is_map(field):
            self._map(message, field, value, path)
        elif field.is_repeated:
            self._list(getattr(message, field.name), field, value, path)
        elif field.message_type is not None:
            part = getattr(message, field.name)
            part.SetInParent()
            self.message(part, value, path)
        else:
            parsed = self._try(path, from_json, field, value)
            if parsed is not None:
                self._try(path, setattr, message, field.name, parsed)

    def _list(self, items: Any, field: FieldDescriptor, value: Any, path: str) -> None:
        if not isinstance(value, list):
            self._problem(path, f"an array was expected, not {shown(value)}")
            return
        for index, item in enumerate(value):
            where = f"{path}[{index}]"
            if field.message_type is not None:
                self.message(items.add(), item, where)
            elif (parsed := self._try(where, from_json, field, item)) is not None:
                self._try(where, items.append, parsed)

    def _map(self, message: Message, field: FieldDescriptor, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            self._problem(path, f"an object was expected, not {shown(value)}")
            return
        for text, item in value.items():
            self._try(f"{path}.{text}", self._entry, message, field, text, item, f"{path}.{text}")

    def _entry(self, message: Message, field: FieldDescriptor, text: str, item: Any, path: str) -> None:
        assert field.message_type is not None
        key_field, value_field = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        key, entries = from_text(key_field, text), getattr(message, field.name)
        if value_field.message_type is not None:
            self.message(entries[key], item, path)
        else:
            entries[key] = from_json(value_field, item)

    def _parameter(self, message: Message, path: str, text: str, seen: set[str]) -> None:
        """Sets the field that a query parameter names: nested fields by dots, map entries as name.key."""
        rest, canonical = path, ""
        while True:
            name, dot, rest = rest.partition(".")
            field = fields_by_name(message.DESCRIPTOR).get(name)
            if field is None:
                raise ValueError(f"unknown parameter{hint(name, message.DESCRIPTOR.fields_by_name)}")
            canonical = f"{canonical}.{field.name}" if canonical else field.name
            if is_map(field):
                if not dot:
                    raise ValueError(f"name the key as in {path}.KEY=VALUE")
                _set_entry(message, field, rest, text)
                return
            kind = field.message_type
            if kind is None or is_well_known(kind):
                break
            if field.is_repeated or not dot:
                raise ValueError("this field cannot be a query parameter")
            message = getattr(message, field.name)
        if dot:
            raise ValueError(f"{name} has no field {rest}")
        if not field.is_repeated and canonical in seen:
            raise ValueError("given twice")
        seen.add(canonical)
        _set(message, field, text)


def _set(message: Message, field: FieldDescriptor, text: str) -> None:
    if field.message_type is not None:
        target = getattr(message, field.name)
        well_known(target.add() if field.is_repeated else target, text)
    elif field.is_repeated:
        getattr(message, field.name).append(from_text(field, text))
    else:
        setattr(message, field.name, from_text(field, text))


def _set_entry(message: Message, field: FieldDescriptor, key: str, text: str) -> None:
    assert field.message_type is not None
    key_field, value_field = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    if value_field.message_type is not None:
        raise ValueError("this field cannot be a query parameter")
    getattr(message, field.name)[from_text(key_field, key)] = from_text(value_field, text)
