"""A key in whatever a server says, in whichever form it sends it back."""

import base64
import json
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.core.redaction import MIN_KEY_LENGTH, redact, remove_keys
from aif.providers import chat_completions
from aif.providers.anthropic_messages import read_reply
from aif.providers.base import CallError, Kind
from tests.support.loopback import KEY, completion, message

# letters that JSON, URLs, HTML and base64 each write otherwise
KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=MIN_KEY_LENGTH, max_size=60)


Form = Callable[[str], str]

FORMS: dict[str, Form] = {
    "as it is": lambda key: key,
    "in JSON": lambda key: json.dumps(key)[1:-1],
    "in JSON, slashes escaped": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "in JSON, all escaped": lambda key: "".join(f"\\u{ord(one):04x}" for one in key),
    "in JSON, in capitals": lambda key: "".join(f"\\u{ord(one):04X}" for one in key),
    "in JSON in JSON": lambda key: json.dumps(json.dumps(key))[1:-1],
    "in a URL": lambda key: quote(key, safe=""),
    "in a URL, all escaped": lambda key: "".join(f"%{ord(one):02x}" for one in key),
    "in a URL in a URL": lambda key: quote(quote(key, safe=""), safe=""),
    "in HTML": lambda key: "".join(f"&#{ord(one)};" for one in key),
    "in HTML, in hex": lambda key: "".join(f"&#x{ord(one):X};" for one in key),
    "in hex": lambda key: key.encode().hex(),
    "in base64": lambda key: base64.b64encode(key.encode()).decode(),
    "in base64, as a bearer": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "in base64, as a password": lambda key: base64.b64encode(f"me:{key}\n".encode()).decode(),
    "in base64 for URLs": lambda key: base64.urlsafe_b64encode(f"u:{key}".encode()).decode(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
@given(key=KEYS, before=st.text('aZ{ "', max_size=5))
def test_a_key_is_found_in_every_form(form: Form, key: str, before: str) -> None:
    said = f"{before}{form(key)}"

    assert "[key]" in remove_keys(said.encode(), key).decode()
    assert "[key]" in redact(said, key)
    assert form(key) not in remove_keys(said.encode(), key).decode()


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"got {KEY}, thanks", "got [key], thanks"),
        (f"Authorization: Bearer {KEY}", "Authorization: Bearer [key]"),
        ("Authorization: bearer other-key-123", "Authorization: bearer [key]"),
        ("Incorrect API key provided: sk-proj-ab*******yz.", "Incorrect API key provided: [key]"),
        ("a risk-averse task-oriented model", "a risk-averse task-oriented model"),
        ("None of the bearers, none", "None of the bearers, none"),
    ],
)
def test_redact(text: str, redacted: str) -> None:
    assert redact(text, KEY) == redacted
    assert redact("none is left", "none") == "none is left"
    assert redact("got EMPTY", "EMPTY") == "got [key]"


@given(st.text())
def test_text_without_a_key_stays_unchanged(text: str) -> None:
    assert remove_keys(text.encode("utf-8", "replace"), KEY) == text.encode("utf-8", "replace")
    assert remove_keys(b"an EMPTY box", "EMPTY") == b"an EMPTY box"  # what servers without keys are given


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_no_reply_holds_the_key(form: Form) -> None:
    key = 'sk-"7f3a/9c51+d2e8'
    said = f"You sent {form(key)} to me."
    raw = json.dumps(completion(said, reasoning_content=said) | {"model": said, "id": said, "system_fingerprint": said})
    reply = chat_completions.parse_response(200, {}, raw.encode(), sent={}, keys=[key])
    theirs = json.dumps(message(said, content=[{"type": "thinking", "thinking": said}, {"type": "text", "text": said}]))
    other = chat_completions.parse_response(200, {}, theirs.encode(), sent={}, keys=[key], read=read_reply)

    for text in (reply.text, reply.reasoning, *reply.served.values(), other.text, other.reasoning):
        assert "[key]" in str(text)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_no_reply_is_read_in_an_encoding_in_which_no_key_was_searched(encoding: str) -> None:
    with pytest.raises(CallError) as caught:
        chat_completions.parse_response(
            200, {}, json.dumps(completion(f"You sent {KEY}.")).encode(encoding), sent={}, keys=[KEY]
        )

    assert caught.value.kind is Kind.BAD_REPLY


@pytest.mark.parametrize("more", [{"refusal": f"I saw {KEY}."}, {"content": f"I saw {KEY}."}])
def test_no_refusal_holds_the_key(more: dict[str, str]) -> None:
    raw = json.dumps(completion(None, "content_filter", **more))
    with pytest.raises(CallError) as caught:
        chat_completions.parse_response(200, {}, raw.encode(), sent={}, keys=[KEY])

    assert caught.value.kind is Kind.BLOCKED
    assert caught.value.reply is not None
    assert KEY not in caught.value.message + caught.value.reply.text
    assert caught.value.reply.text == "I saw [key]."
