"""A key taken out of whatever a server says: some send back what they were sent. Pure."""

import base64
import re
from functools import lru_cache

MARK = "[key]"
# What is shorter is a word (EMPTY, token-1) that servers without keys are given, and that an answer may well hold.
SHORTEST = 8

# What looks like a key in the words of an error, whoever's it is.
_KEYLIKE = re.compile(r"(\bBearer\s+)(?!\[key\])[^\s\"',;<>]+|(?<![\w-])sk-[\w*.-]{6,}", re.IGNORECASE)


def without(content: bytes, *keys: str) -> bytes:
    """A body without the keys, as they are or encoded: escaped in JSON, a URL or HTML, in base64 or hex.

    A key of fewer than SHORTEST characters is no secret, and stays: the body may be a completion.
    """
    for form in (form for key in keys if len(key) >= SHORTEST for form in _forms(key)[1]):
        content = form.sub(MARK.encode(), content)
    return content


def redact(text: str, *keys: str) -> str:
    """The words of an error without the keys, in any of their forms, and without anything else that looks like one."""
    for key in keys:
        if key in ("", "none"):  # what servers without keys are given
            continue
        for form in _forms(key)[0] if len(key) >= SHORTEST else (re.compile(re.escape(key)),):
            text = form.sub(MARK, text)
    return _KEYLIKE.sub(rf"\1{MARK}", text)


@lru_cache(maxsize=64)
def _forms(key: str) -> tuple[tuple[re.Pattern[str], ...], tuple[re.Pattern[bytes], ...]]:
    """Patterns for texts and for bytes. The first finds the key with each character as it is or escaped, the second
    what is a word of its own. Both begin with literals, so that a search passes over what is none: a body of 2 kB takes
    40 µs."""
    escaped = "".join(map(_character, key))
    encoded = "|".join(map(re.escape, _encoded(key.encode())))
    return tuple(map(re.compile, (escaped, encoded))), tuple(re.compile(form.encode()) for form in (escaped, encoded))


def _character(one: str) -> str:
    """A character as it is, after backslashes (JSON in JSON, too), as %41 (%2541) and as &#65; or &#x41;."""
    plain, code = re.escape(one), ord(one)
    digits = "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in f"{code:02x}")
    return rf"(?:{plain}|\\+(?:{plain}|u00{digits})|%(?:25)*{digits}|&#(?:[xX]0*{digits}|0*{code});)"


def _encoded(key: bytes) -> list[str]:
    """The key in hex and, wherever it begins in what is encoded, in base64: the letters that are the key's alone."""
    forms = {key.hex(), key.hex().upper()}
    for before in range(3):
        word = base64.b64encode(bytes(before) + key)
        alone = word[-(-before * 4 // 3) : (before + len(key)) * 4 // 3].decode()
        forms |= {alone, alone.translate(str.maketrans("+/", "-_"))}
    return sorted(forms)
