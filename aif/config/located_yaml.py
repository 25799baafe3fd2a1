"""Parse YAML and remember the line of every value, so that errors can name it; apply `--set` options.

Stricter than PyYAML: a duplicate key is a problem, keys are always text, dates stay text, and 1e-3 is a number.
"""

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from aif.core.errors import BadInput

MAX_VALUES = 100_000  # a few lines of aliases to aliases would expand to billions

KeyPath = tuple[str | int, ...]


class Problem(NamedTuple):
    """An error in the document.

    keys: the keys that lead from the top to the wrong value, such as `("models", "a", "base_url")`.
    text: what is wrong and how to fix it.
    """

    keys: KeyPath
    text: str


class Location(NamedTuple):
    """Where a value comes from.

    where: `file:line`, or `--set KEY`.
    written: a scalar's text in the YAML, before its conversion; None for a list or mapping.
    """

    where: str
    written: str | None = None


def dotted(keys: KeyPath) -> str:
    """Join keys with dots, as in `models.a.base_url`."""
    return ".".join(map(str, keys))


@dataclass(slots=True)
class YamlDocument:
    """A parsed YAML text.

    data: the parsed value.
    locations: by key path, the location of each value.
    problems: the errors found in parsing, such as duplicate keys.
    """

    data: Any
    locations: dict[KeyPath, Location] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def location_of(self, keys: KeyPath) -> Location:
        """Return the location of the value at this key path. For a value without a location, return the place of the
        nearest mapping or list around it, with `written` None."""
        if keys in self.locations:
            return self.locations[keys]
        nearest = next((keys[:n] for n in range(len(keys), -1, -1) if keys[:n] in self.locations), ())
        return Location(self.locations[nearest].where)

    def assign(self, assignment: str) -> None:
        """Change the document's data by a `--set KEY=VALUE` option.

        KEY is dotted, VALUE is YAML. In KEY, `*` selects every entry of a mapping or list, and a number selects an
        entry of a list, counted from 0. A name in the file may itself contain dots: at each level the longest existing
        key that matches is used. Missing keys are created. Raises BadInput.
        """
        key, equals, written = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise BadInput("--set takes KEY=VALUE, such as --set completions.temperature=0.7")
        origin = f"--set {key}"
        value = parse_yaml(written, lambda _: origin)
        for problem in value.problems:
            raise BadInput(f"{origin}: {dotted(problem.keys)}: {problem.text}")
        for keys in list(_targets(self.data, key.split("."), (), origin)):
            self._set(keys, value, origin)

    def _set(self, keys: KeyPath, value: "YamlDocument", origin: str) -> None:
        for replaced in [other for other in self.locations if other[: len(keys)] == keys]:
            del self.locations[replaced]
        self.data = {} if self.data is None else self.data
        at: Any = self.data
        for depth, key in enumerate(keys[:-1], start=1):
            if (at.get(key) if isinstance(at, dict) else at[key]) is None:
                at[key] = {}
                self.locations[keys[:depth]] = Location(origin)
            at = at[key]
        at[keys[-1]] = copy.deepcopy(value.data)
        for below, location in value.locations.items():
            self.locations[keys + below] = Location(origin, location.written)


def parse_yaml(text: str, place: Callable[[int], str]) -> YamlDocument:
    """Parse a YAML text. `place` converts a line number (from 1) to the place that errors name, such as `file:line`.
    Raises BadInput if the text isn't YAML; other errors, such as duplicate keys, become the document's `problems`."""
    document = YamlDocument(None, {(): Location(place(1))})
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            document.data = _Builder(loader, place, document).build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = place(mark.line + 1 if mark else 1)
        raise BadInput(
            f"{line}: can't be read as YAML: {error.problem}; check indentation, colons and quotes"
        ) from error
    except yaml.reader.ReaderError as error:
        line = place(text.count("\n", 0, error.position) + 1)
        raise BadInput(
            f"{line}: can't be read as YAML: it contains the character {error.character!r}; remove it"
        ) from error
    except RecursionError as error:
        raise BadInput(f"{place(1)}: can't be read as YAML: nested too deeply; use fewer levels") from error
    return document


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that it joins surrogate pairs. Statements further down in this module change which
    texts the loader converts to numbers or dates."""

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Compose a single value, with its surrogate pairs joined: JSON writes a character beyond U+FFFF as two
        escapes. Raises MarkedYAMLError for half a pair."""
        node = super().compose_scalar_node(anchor)
        try:
            node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            mark = node.start_mark
            raise yaml.MarkedYAMLError(problem="half a character (a lone surrogate)", problem_mark=mark) from error
        return node


class _Builder:
    """Builds Python data from YAML nodes.

    loader: converts single values.
    place: converts a line number to the place that errors name, such as `file:line`.
    document: gets the location of each value, and each problem found.
    """

    def __init__(self, loader: _Loader, place: Callable[[int], str], document: YamlDocument) -> None:
        self._loader = loader
        self._place = place
        self._document = document
        self._checked: set[int] = set()
        self._built = 0

    def build(self, node: yaml.Node, keys: KeyPath) -> Any:
        self._built += 1
        if self._built > MAX_VALUES:
            where = self._place(1)
            raise BadInput(f"{where}: has more than {MAX_VALUES:,} values with its aliases expanded; use fewer")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(child, child, (*keys, n)) for n, child in enumerate(node.value)]
        self._document.locations[keys] = Location(self._document.locations[keys].where, node.value)
        try:
            return self._loader.construct_object(node)
        except ValueError:
            self._problem(keys, f"{node.value[:60]!r} can't be read; correct it or put it in quotes")
            return None

    def _mapping(self, node: yaml.MappingNode, keys: KeyPath) -> dict[str, Any]:
        if id(node) not in self._checked:  # an aliased node is built again; its merge keys are then resolved already
            self._checked.add(id(node))
            self._check_keys(node, keys)
            self._loader.flatten_mapping(node)
        scalars = [(key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
        return {key.value: self._item(key, value, (*keys, key.value)) for key, value in scalars}

    def _check_keys(self, node: yaml.MappingNode, keys: KeyPath) -> None:
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self._problem(keys, f"line {line} has a list or mapping as a key; write a name")
            elif key.value in first:
                text = f"given twice, in lines {first[key.value]} and {line}; keep one"
                self._problem((*keys, key.value), text)
            else:
                first[key.value] = line

    def _item(self, mark: yaml.Node, value: yaml.Node, keys: KeyPath) -> Any:
        self._document.locations[keys] = Location(self._place(mark.start_mark.line + 1))
        return self.build(value, keys)

    def _problem(self, keys: KeyPath, text: str) -> None:
        self._document.problems.append(Problem(keys, text))


_FLOAT = re.compile(
    r"^[-+]?(?:(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)
_REPLACED = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")

_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# resolvers are tried in order, so whole numbers stay integers
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _targets(data: Any, names: list[str], at: KeyPath, origin: str) -> Iterator[KeyPath]:
    """Yield each key path that a `--set` option sets, whether or not a value exists there yet. Raises BadInput if the
    key leads nowhere, such as past the end of a list.

    data: the part of the document in which `names` are searched.
    names: the option's dotted key, split at its dots.
    at: the key path of `data` in the document.
    origin: the option as errors name it.
    """
    if not names:
        yield at
    elif names[0] == "*":
        entries = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
        if not entries:
            raise BadInput(f"{origin}: {dotted(at) or 'the file'} has no entries for '*' to stand for; name one")
        for entry in entries:
            yield from _targets(data[entry], names[1:], (*at, entry), origin)
    elif isinstance(data, list):
        if not names[0].isdecimal() or int(names[0]) >= len(data):
            raise BadInput(
                f"{origin}: {dotted(at) or 'the file'} has {len(data)} entries, counted from 0; name one of them"
            )
        yield from _targets(data[int(names[0])], names[1:], (*at, int(names[0])), origin)
    elif isinstance(data, dict) or data is None:
        yield from _targets_in_mapping(data or {}, names, at, origin)
    else:
        raise BadInput(f"{origin}: {dotted(at) or 'the file'} is a single value without keys; remove {names[0]!r}")


def _targets_in_mapping(data: dict[str, Any], names: list[str], at: KeyPath, origin: str) -> Iterator[KeyPath]:
    for n in range(len(names), 0, -1):
        name = ".".join(names[:n])
        if name in data:
            yield from _targets(data[name], names[n:], (*at, name), origin)
            return
    if "*" in names:
        raise BadInput(f"{origin}: {dotted((*at, names[0]))} does not exist, so '*' stands for nothing; name an entry")
    yield (*at, *names)
