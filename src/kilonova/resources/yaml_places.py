"""YAML with the place of each value, so that what is wrong with a file can be pointed at."""

from __future__ import annotations

from typing import NoReturn

import yaml

from kilonova.errors import Failed

_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class Place:
    """A value of a file.  ``fields`` are those of a mapping, ``items`` those of a list, or None."""

    __slots__ = ("_at", "_file", "fields", "items", "value")

    def __init__(self, file: str, mark: yaml.Mark | None, value: object) -> None:
        self._file = file
        self._at = _position(mark)
        self.value = value  # a scalar, or None for a mapping and a list
        self.fields: dict[str, Place] | None = None
        self.items: list[Place] | None = None

    def wrong(self, what: str) -> NoReturn:
        """Raises Failed with file, line and column, both counted from 1."""
        raise Failed(f"{self._file}:{self._at}: {what}")

    @property
    def shown(self) -> str:
        """The value as an error shows it."""
        if self.fields is not None:
            return "a mapping"
        if self.items is not None:
            return "a list"
        text = repr(self.value)
        return text if len(text) <= 100 else f"{text[:97]}..."


def read(file: str, data: bytes) -> Place:
    """The one document of a file, which is in UTF-8.

    Raises Failed for what is no YAML, has tags beyond the standard ones, names a key twice or refers to
    itself.
    """
    try:
        return _document(file, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        where = _place_in(data[: error.start].decode(errors="replace"))
        raise Failed(f"{file}:{where}: this is not UTF-8") from error
    except yaml.MarkedYAMLError as error:
        words = ", ".join(part for part in (error.context, error.problem) if part)
        raise Failed(f"{file}:{_position(error.problem_mark or error.context_mark)}: {words}") from error
    except RecursionError as error:
        raise Failed(f"{file}:1:1: it is nested too deeply") from error


def _document(file: str, text: str) -> Place:
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        where = _place_in(text[: error.position])
        raise Failed(f"{file}:{where}: U+{int(error.character):04X} cannot be here") from error
    try:
        node = loader.get_single_node()
        return Place(file, None, None) if node is None else _Reader(file, loader).place(node)
    finally:
        loader.dispose()


def _position(mark: yaml.Mark | None) -> str:
    return "1:1" if mark is None else f"{mark.line + 1}:{mark.column + 1}"


def _place_in(before: str) -> str:
    """Line and column of what comes after some text."""
    return f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


class _Reader:
    """Each node is read once, however often it is referred to."""

    def __init__(self, file: str, loader: yaml.SafeLoader) -> None:
        self._file = file
        self._loader = loader
        self._known: dict[int, Place | None] = {}  # None: in the middle of it

    def place(self, node: yaml.Node) -> Place:
        if id(node) in self._known:
            known = self._known[id(node)]
            return known if known is not None else self._at(node).wrong("it refers to itself")
        self._known[id(node)] = None
        made = self._at(node)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN:
            made.wrong(f"the tag {node.tag} means nothing here")
        if isinstance(node, yaml.MappingNode):
            made.fields = self._fields(node)
        elif isinstance(node, yaml.SequenceNode):
            made.items = [self.place(each) for each in node.value]
        else:
            made.value = self._scalar(node, made)
        self._known[id(node)] = made
        return made

    def _at(self, node: yaml.Node) -> Place:
        return Place(self._file, node.start_mark, None)

    def _fields(self, node: yaml.MappingNode) -> dict[str, Place]:
        self._refuse_twice(node)
        self._loader.flatten_mapping(node)  # "<<"
        found: dict[str, Place] = {}
        for key_node, value_node in node.value:
            key = self.place(key_node)
            if not isinstance(key.value, str):
                key.wrong(f"{key.shown} is no text, as keys have to be")
            found[key.value] = self.place(value_node)  # what is merged comes first, and its own goes before
        return found

    def _refuse_twice(self, node: yaml.MappingNode) -> None:
        seen: set[object] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                self._at(key).wrong(f"the key {key.value!r} is given twice")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)

    def _scalar(self, node: yaml.Node, made: Place) -> object:
        try:
            return self._loader.construct_object(node)
        except (ValueError, OverflowError, KeyError, AttributeError, TypeError) as error:
            made.wrong(f"this is no {str(node.tag).rpartition(':')[2]}: {error}")
