"""Remove API keys from server responses and messages: some servers send back what they received. Pure."""

import base64
import re
from functools import lru_cache

PLACEHOLDER = "[key]"
# A shorter key is a word (EMPTY, token-1) for a server without keys, and a completion may well contain it.
MIN_KEY_LENGTH = 8

# Whatever looks like a key in an error message, whoever it belongs to.
_KEYLIKE = re.compile(r"(\bBearer\s+)(?!\[key\])[^\s\"',;<>]+|(?<![\w-])sk-[\w*.-]{6,}", re.IGNORECASE)


def remove_keys(content: bytes, *keys: str) -> bytes:
    """Return a response body with `[key]` in place of the keys, also where they are escaped (JSON, URL, HTML) or
    encoded (base64, hex).

    A key of fewer than MIN_KEY_LENGTH (8) characters stays. It is no secret, but a word such as `EMPTY` that a
    completion may contain.
    """
    for form in (form for key in keys if len(key) >= MIN_KEY_LENGTH for form in _key_patterns(key)[1]):
        content = form.sub(PLACEHOLDER.encode(), content)
    return content


def redact(text: str, *keys: str) -> str:
    """Return an error message with `[key]` in place of the keys, also escaped or encoded, and in place of everything
    else that looks like a key (`sk-…`, `Bearer …`)."""
    for key in keys:
        if key in ("", "none"):  # placeholders for servers without keys
            continue
        for form in _key_patterns(key)[0] if len(key) >= MIN_KEY_LENGTH else (re.compile(re.escape(key)),):
            text = form.sub(PLACEHOLDER, text)
    return _KEYLIKE.sub(rf"\1{PLACEHOLDER}", text)


@lru_cache(maxsize=64)
def _key_patterns(key: str) -> tuple[tuple[re.Pattern[str], ...], tuple[re.Pattern[bytes], ...]]:
    """Return two pairs of patterns that find a key: one pair for texts, one for bytes. The first of a pair matches the
    key with any of its characters escaped, the second the key in base64 or hex. Both begin with literals, so that a
    search without a match is fast: 40 µs for a body of 2 kB."""
    escaped = "".join(map(_character_pattern, key))
    encoded = "|".join(map(re.escape, _encoded(key.encode())))
    return tuple(map(re.compile, (escaped, encoded))), tuple(re.compile(form.encode()) for form in (escaped, encoded))


def _character_pattern(char: str) -> str:
    """Return a pattern that matches a character plain or escaped: after backslashes (JSON, and JSON within JSON), as
    %41 or %2541 (URL), as &#65; or &#x41; (HTML)."""
    plain, code = re.escape(char), ord(char)
    digits = "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in f"{code:02x}")
    return rf"(?:{plain}|\\+(?:{plain}|u00{digits})|%(?:25)*{digits}|&#(?:[xX]0*{digits}|0*{code});)"


def _encoded(key: bytes) -> list[str]:
    """Return the key in hex and in base64. Base64 has three forms of it, by the key's offset in the data. Each form
    leaves out the characters at its ends that also encode neighbouring bytes."""
    forms = {key.hex(), key.hex().upper()}
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + key)
        own = encoded[-(-offset * 4 // 3) : (offset + len(key)) * 4 // 3].decode()
        forms |= {own, own.translate(str.maketrans("+/", "-_"))}
    return sorted(forms)
