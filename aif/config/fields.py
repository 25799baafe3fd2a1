"""The types of single values in a pipeline file, with their checks. Each error message says what to write instead."""

import math
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from socket import inet_aton
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from aif.config.error_messages import format_value
from aif.core.reasoning import Tags


def _name(value: str) -> str:
    if not value.strip() or value != value.strip() or not value.isprintable():
        raise ValueError("a name needs visible characters, no control characters, and no space at its ends")
    return value


def _run_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError(
            f"{format_value(value)} can't be the name of a folder under runs/; use letters, digits, '.', '_' and '-', "
            "and begin with a letter or digit"
        )
    return value


def _variable(value: str) -> str:
    # the value may be a key pasted into the wrong place: the message doesn't repeat it. Lower case would let hf_… pass
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
        raise ValueError("expected the name of an environment variable in capitals, such as MY_API_KEY, not the key")
    return value


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and value.isprintable()
    except ValueError:
        usable = False
    if "@" in value or "?" in value or "#" in value:
        raise ValueError("expected an address without user, password, '?' and '#'; API keys come from the environment")
    if not usable or " " in value:
        raise ValueError(f"expected an address such as http://localhost:8000/v1, got {format_value(value)}")
    return value.rstrip("/")


# Not reachable from the internet: this machine, private networks (RFC 1918, 4193; 6598, which VPNs use), link-local
# addresses. Python's `is_private` covers more, such as the addresses for documentation.
_PRIVATE_NETWORKS = [
    ip_network(network)
    for network in (
        "127.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10",
        "::1/128", "::/128", "fc00::/7", "fe80::/10",
    )
]  # fmt: skip
# Names without a dot belong to this machine or network. So do names in domains that nobody can register (RFC 6761,
# 6762, 8375, ICANN's `.internal`; routers use `.lan`): host.docker.internal, gpu-1.local.
_PRIVATE_NAMES = re.compile(r"[a-z0-9_-]+|(?:[a-z0-9_-]+\.)+(?:localhost|local|internal|lan|home\.arpa)")


def is_private_host(url: str) -> bool:
    """Return whether a URL's host is this machine or in a private network, by its address or name alone, without a DNS
    lookup. A server at any other host may be somebody else's and cost money."""
    host = (urlsplit(url).hostname or "").removesuffix(".")
    try:
        address = _address(host)
    except ValueError:
        return bool(_PRIVATE_NAMES.fullmatch(host))
    return any(address in network for network in _PRIVATE_NETWORKS)


def is_openai_host(url: str) -> bool:
    """Return whether a URL's host is OpenAI's, or Azure's for OpenAI models."""
    host = urlsplit(url).hostname or ""
    return bool(
        re.search(r"(^|\.)(openai\.com|openai\.azure\.(com|us|cn)|(services\.ai|cognitiveservices)\.azure\.com)$", host)
    )


def _address(host: str) -> IPv4Address | IPv6Address:
    """Parse an IP address in any notation, such as 10.0.0.1, 10.1 or 167772161. An IPv4-mapped IPv6 address is returned
    as its IPv4 address. Raises ValueError if the host is a name."""
    try:
        address = ip_address(host)
    except ValueError:
        try:
            return IPv4Address(inet_aton(host))
        except OSError as error:
            raise ValueError(f"{host} is a name") from error
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _test_size(value: Any) -> int | float:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise ValueError(
        f"expected a count such as 2000 or a share between 0 and 1 such as 0.05, got {format_value(value)}"
    )


def _as_path(value: Any) -> Any:
    if value == "":
        raise ValueError("empty; write something, or remove the key")
    if isinstance(value, str) and ("?" in value or re.match(r"[A-Za-z][\w+.-]*:", value)):
        raise ValueError(f"{value!r}: to DuckDB, '?' and 'NAME:' are not part of a path; choose another")
    if isinstance(value, str) and not value.endswith(".duckdb"):
        raise ValueError(
            f"{value!r}: a store's name must end with .duckdb, such as {value.rstrip('/')}/feedback.duckdb"
        )
    return Path(value) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class FromEnvironment:
    """The value of a header, to be read from the environment variable called `variable`."""

    variable: str


_KEY_HEADERS = ("authorization", "api-key", "x-api-key", "x-goog-api-key")
# Headers that HTTP or the client sets itself.
_RESERVED_HEADERS = frozenset(
    {"host", "connection", "content-length", "content-type", "transfer-encoding", "accept-encoding", "te", "trailer"}
)


def is_auth_header(name: str) -> bool:
    """Return whether the header called `name` is one that holds an API key, such as Authorization."""
    return name.lower() in _KEY_HEADERS


def _headers(value: Any) -> dict[str, str | FromEnvironment]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"expected names and texts, such as {{X-Title: my run}}, got {format_value(value)}")
    return {_header_name(name): _header_value(name, text) for name, text in value.items()}


def _header_name(name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
        raise ValueError(f"{format_value(name)} isn't a valid header name; use letters, digits and -")
    if name.lower() in _RESERVED_HEADERS:
        raise ValueError(f"{name} is set by the client; remove it")
    return name


def _header_value(name: str, value: Any) -> str | FromEnvironment:
    if isinstance(value, dict) and set(value) == {"env"} and isinstance(value["env"], str):
        return FromEnvironment(_variable(value["env"]))
    value = _number_as_text(value)
    if is_auth_header(name):
        raise ValueError(f"an API key must not be in the file; write {name}: {{env: NAME}}")
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or value != value.strip():
        raise ValueError(f"{name}: expected a text on one line, or {{env: NAME}}, got {format_value(value)}")
    return value


def _query(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"expected names and texts, such as {{api-version: 2025-04-01}}, got {format_value(value)}")
    query = {str(name): _number_as_text(text) for name, text in value.items()}
    for name, text in query.items():
        if re.search(r"(^|[_-])(key|token|sig|secret|password)$", name.lower()):
            raise ValueError(
                f"{name}: an API key must not be in the file; see extra_headers: {{NAME: {{env: VARIABLE}}}}"
            )
        if not isinstance(text, str):
            raise ValueError(f"{name}: expected a text, got {format_value(text)}; put it in quotes")
    return query


def _json(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"expected names and values, such as {{top_k: 40}}, got {format_value(value)}")
    _check_json(value, "")
    return value


def _check_json(value: Any, at: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _check_json(item, f"{at}{name}: ")
    elif isinstance(value, list):
        for item in value:
            _check_json(item, at)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{at}JSON has no {value}")
    elif not isinstance(value, str | int | float | bool | None):
        raise ValueError(f"{at}JSON has no {type(value).__name__}; put it in quotes")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"{at}{value} is too large")


def _omitted(value: Any) -> tuple[str, ...]:
    items = _as_tuple(value)
    if not isinstance(items, list | tuple) or not items:
        raise ValueError(f"expected a list, such as [seed], got {format_value(value)}")
    for item in items:
        if item in ("temperature", "top_p", "reasoning_effort"):
            raise ValueError(f"to leave out {item}, write `{item}: null`")
        if item != "seed":
            raise ValueError(f"only seed can be left out here, got {format_value(item)}")
    return ("seed",)


def _tags(value: Any) -> Tags:
    if value in ("auto", "none"):
        return cast(Tags, value)
    if not isinstance(value, list | tuple) or not all(isinstance(tag, str) and tag.strip() for tag in value):
        raise ValueError(f"expected auto, none, or two tags such as ['<think>', '</think>'], got {format_value(value)}")
    if len(value) != 2 or value[0] == value[1]:
        raise ValueError(f"expected two tags, the one before reasoning and the one after it, got {format_value(value)}")
    return value[0], value[1]


def _slot(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", value):
        raise ValueError(
            f"{format_value(value)} isn't a valid slot name; use up to 40 lower-case letters, digits and _"
        )
    return value


def _number_as_text(value: Any) -> Any:
    # YAML reads VAR: 1 as a number
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Count = Annotated[int, Field(ge=1)]
AtLeastTwo = Annotated[int, Field(ge=2)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Ratio = Annotated[float, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
NonEmpty = Annotated[str, Field(min_length=1)]
Name = Annotated[str, AfterValidator(_name)]
RunName = Annotated[str, AfterValidator(_run_name)]
SlotName = Annotated[str, AfterValidator(_slot)]
VariableValue = Annotated[str, BeforeValidator(_number_as_text)]
VariableName = Annotated[str, AfterValidator(_variable)]
Headers = Annotated[dict[str, str | FromEnvironment], PlainValidator(_headers)]
QueryParameters = Annotated[dict[str, str], PlainValidator(_query)]
JsonObject = Annotated[dict[str, Any], PlainValidator(_json)]
Omitted = Annotated[tuple[str, ...], PlainValidator(_omitted)]
ReasoningTags = Annotated[Tags, PlainValidator(_tags)]
StorePath = Annotated[Path, BeforeValidator(_as_path)]
Urls = Annotated[
    tuple[Annotated[str, AfterValidator(_url)], ...], BeforeValidator(_as_tuple), Field(strict=False, min_length=1)
]
Provider = Literal["vllm", "openai", "anthropic", "simulator"]
Format = Literal["trl", "h4", "ultrafeedback", "kto", "reward", "sft"]
TestSize = Annotated[int | float, PlainValidator(_test_size)]
