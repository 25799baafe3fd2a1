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
    """Return a response body with the keys replaced, also where they are escaped (JSON, URL, HTML) or encoded (base64,
    hex).

    A key of fewer than MIN_KEY_LENGTH characters is no secret and stays: the body may be a completion.
    """
    for form in (form for key in keys if len(key) >= MIN_KEY_LENGTH for form in _forms(key)[1]):
        content = form.sub(PLACEHOLDER.encode(), content)
    return content


def redact(text: str, *keys: str) -> str:
    """Return an error message with the keys replaced in all their forms, and everything else that looks like a key."""
    for key in keys:
        if key in ("", "none"):  # placeholders for servers without keys
            continue
        for form in _forms(key)[0] if len(key) >= MIN_KEY_LENGTH else (re.compile(re.escape(key)),):
            text = form.sub(PLACEHOLDER, text)
    return _KEYLIKE.sub(rf"\1{PLACEHOLDER}", text)


@lru_cache(maxsize=64)
def _forms(key: str) -> tuple[tuple[re.Pattern[str], ...], tuple[re.Pattern[bytes], ...]]:
    """Return the patterns of a key for texts and for bytes. Of each pair, the first matches the key with each character
    plain or escaped, the second the key encoded as a whole. Both begin with literals, which makes a search without a
    match fast: a body of 2 kB takes 40 µs."""
    escaped = "".join(map(_character_pattern, key))
    encoded = "|".join(map(re.escape, _encoded(key.encode())))
    return tuple(map(re.compile, (escaped, encoded))), tuple(re.compile(form.encode()) for form in (escaped, encoded))


def _character_pattern(char: str) -> str:
    """Return a pattern for a character as it is, after backslashes (JSON within JSON, too), as %41 (%2541) and as &#65;
    or &#x41;."""
    plain, code = re.escape(char), ord(char)
    digits = "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in f"{code:02x}")
    return rf"(?:{plain}|\\+(?:{plain}|u00{digits})|%(?:25)*{digits}|&#(?:[xX]0*{digits}|0*{code});)"


def _encoded(key: bytes) -> list[str]:
    """Return the key in hex and in base64. Base64 has three forms, by the key's offset in the encoded text; each keeps
    only the characters that the key alone determines."""
    forms = {key.hex(), key.hex().upper()}
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + key)
        own = encoded[-(-offset * 4 // 3) : (offset + len(key)) * 4 // 3].decode()
        forms |= {own, own.translate(str.maketrans("+/", "-_"))}
    return sorted(forms)
