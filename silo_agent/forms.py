"""What a field of the hospital's own files has to look like, in words: pydantic tells its regular expression."""

from pydantic_core import ErrorDetails

from boundary.errors import MalformedMessage
from boundary.fields import PUBLIC_KEY_PATTERN
from boundary.identity import PublicIdentity
from boundary.names import DIGEST_PATTERN, NAME_PATTERN
from silo_agent.errors import ConfigError

_FORMS = {
    NAME_PATTERN: "a short name of small letters, digits and hyphens, at most 40, such as st-olavs",
    DIGEST_PATTERN: "sha256: and the 64 small hexadecimal digits that `sha256sum FILE` prints",
    PUBLIC_KEY_PATTERN: "a public key, as `silo-agent policy key FILE` prints it on its person's machine",
}


def reason_of(error: ErrorDetails) -> str:
    """What is wrong with a field, without the field's name or value."""
    if error["type"] == "string_pattern_mismatch":
        form = _FORMS.get(error["ctx"]["pattern"])
        if form is not None:
            return f"has to be {form}"
    return error["msg"].removeprefix("Value error, ")


def check_key(text: str, where: str) -> None:
    """Raises `ConfigError` if this is no public key of a person; `where` is what the sentence calls it."""
    try:
        PublicIdentity(text)
    except MalformedMessage as why:
        raise ConfigError(f"{where} has to be {_FORMS[PUBLIC_KEY_PATTERN]}") from why
