"""YAML that remembers where everything stands, so that an error can name the line; and `--set` on top of it.

Stricter than PyYAML: a key given twice is a problem, keys are always text, dates stay text, and 1e-3 is a number.
"""

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from aif.core.errors import BadInput

MAX_VALUES = 100_000  # values; a few lines of aliases to aliases would come to billions

KeyPath = tuple[str | int, ...]


class Problem(NamedTuple):
    """Something wrong: where in the tree, and what (with the mend)."""

    keys: KeyPath
    text: str


class Location(NamedTuple):
    """Where a value came from (`file:line` or `--set KEY`) and, for a scalar, how it was written."""

    where: str
    written: str | None = None


def dotted(keys: KeyPath) -> str:
    """Keys as a person writes them: models.a.base_url."""
    return ".".join(map(str, keys))


@dataclass(slots=True)
class YamlDocument:
    """A YAML text as data, with the place of each value and the problems met in reading."""

    data: Any
    locations: dict[KeyPath, Location] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def location_of(self, keys: KeyPath) -> Location:
        """The place of a value, or of the nearest thing that would hold it."""
        if keys in self.locations:
            return self.locations[keys]
        nearest = next((keys[:n] for n in range(len(keys), -1, -1) if keys[:n] in self.locations), ())
        return Location(self.locations[nearest].where)

    def assign(self, assignment: str) -> None:
        """Do one `--set KEY=VALUE`.

        KEY is dotted; names may hold dots themselves: at each level the longest existing key that fits is taken.
        `*` stands for every entry, numbers count a list's entries from 0. VALUE is YAML. What doesn't exist yet is
        made. Raises BadInput.
        """
        key, equals, written = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise BadInput("--set takes KEY=VALUE, such as --set completions.temperature=0.7")
        origin = f"--set {key}"
        value = parse_yaml(written, lambda _: origin)
        for problem in value.problems:
            raise BadInput(f"{origin}: {dotted(problem.keys)}: {problem.text}")
        for keys in list(_targets(self.data, key.split("."), (), origin)):
            self._assign(keys, value, origin)

    def _assign(self, keys: KeyPath, value: "YamlDocument", origin: str) -> None:
        for known in [known for known in self.locations if known[: len(keys)] == keys]:
            del self.locations[known]
        self.data = {} if self.data is None else self.data
        at: Any = self.data
        for depth, key in enumerate(keys[:-1], start=1):
            if (at.get(key) if isinstance(at, dict) else at[key]) is None:
                at[key] = {}
                self.locations[keys[:depth]] = Location(origin)
            at = at[key]
        at[keys[-1]] = copy.deepcopy(value.data)
        for below, place in value.locations.items():
            self.locations[keys + below] = Location(origin, place.written)


def parse_yaml(text: str, place: Callable[[int], str]) -> YamlDocument:
    """YAML text as data. `place` names a line (from 1) in places and errors. Raises BadInput where it isn't YAML."""
    found = YamlDocument(None, {(): Location(place(1))})
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            found.data = _Builder(loader, place, found).build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = place(mark.line + 1 if mark else 1)
        raise BadInput(
            f"{line}: can't be read as YAML: {error.problem}; check indentation, colons and quotes"
        ) from error
    except yaml.reader.ReaderError as error:
        line = place(text.count("\n", 0, error.position) + 1)
        raise BadInput(
            f"{line}: can't be read as YAML: it holds the character {error.character!r}; take it out"
        ) from error
    except RecursionError as error:
        raise BadInput(f"{place(1)}: can't be read as YAML: nested without end; write it with few levels") from error
    return found


class _Loader(yaml.SafeLoader):
    """The tags that decide what a plain scalar is, changed below."""

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Two escapes for one character, as JSON writes what is beyond 16 bits, are that character."""
        node = super().compose_scalar_node(anchor)
        try:
            node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            mark = node.start_mark
            raise yaml.MarkedYAMLError(problem="half a character (a lone surrogate)", problem_mark=mark) from error
        return node


class _Builder:
    """Makes data of nodes, noting places and problems in `found`."""

    def __init__(self, loader: _Loader, place: Callable[[int], str], found: YamlDocument) -> None:
        self._loader = loader
        self._place = place
        self._found = found
        self._checked: set[int] = set()
        self._built = 0

    def build(self, node: yaml.Node, keys: KeyPath) -> Any:
        self._built += 1
        if self._built > MAX_VALUES:
            where = self._place(1)
            raise BadInput(
                f"{where}: holds more than {MAX_VALUES:,} values once its aliases are written out; use fewer"
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(child, child, (*keys, n)) for n, child in enumerate(node.value)]
        self._found.locations[keys] = Location(self._found.locations[keys].where, node.value)
        try:
            return self._loader.construct_object(node)
        except ValueError:
            self._problem(keys, f"{node.value[:60]!r} can't be read; correct it or put it in quotes")
            return None

    def _mapping(self, node: yaml.MappingNode, keys: KeyPath) -> dict[str, Any]:
        if id(node) not in self._checked:  # a node named by an alias is built again, and merges were resolved by then
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
                self._problem(keys, f"line {line} has a list or mapping where a name belongs; write a name")
            elif key.value in first:
                text = f"given twice, in lines {first[key.value]} and {line}; keep one"
                self._problem((*keys, key.value), text)
            else:
                first[key.value] = line

    def _item(self, mark: yaml.Node, value: yaml.Node, keys: KeyPath) -> Any:
        self._found.locations[keys] = Location(self._place(mark.start_mark.line + 1))
        return self.build(value, keys)

    def _problem(self, keys: KeyPath, text: str) -> None:
        self._found.problems.append(Problem(keys, text))


_FLOAT = re.compile(
    r"^[-+]?(?:(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)
_REPLACED = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")

_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _REPLACED]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# resolvers are tried in order, so whole numbers are still whole numbers
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _targets(data: Any, names: list[str], at: KeyPath, origin: str) -> Iterator[KeyPath]:
    """The full keys that a dotted path means in `data`; what doesn't exist yet included."""
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
        yield from _below(data or {}, names, at, origin)
    else:
        raise BadInput(
            f"{origin}: {dotted(at) or 'the file'} is a single value with no keys below it; leave {names[0]!r} out"
        )


def _below(data: dict[str, Any], names: list[str], at: KeyPath, origin: str) -> Iterator[KeyPath]:
    for n in range(len(names), 0, -1):
        name = ".".join(names[:n])
        if name in data:
            yield from _targets(data[name], names[n:], (*at, name), origin)
            return
    if "*" in names:
        raise BadInput(f"{origin}: {dotted((*at, names[0]))} does not exist, so '*' stands for nothing; name an entry")
    yield (*at, *names)
