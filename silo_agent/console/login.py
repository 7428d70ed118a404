"""The console's one login: a passphrase that is made here, shown once, and kept as a hash only."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import Field, ValidationError

from boundary.names import Base64Bytes, Frozen, encode_base64
from silo_agent.errors import ConfigError
from silo_agent.state import StateFolder, write_private

FILE_NAME = "console.login"
RENEW = "run `silo-agent console --new-login`"
SALT_BYTES, HASH_BYTES = 16, 32
# RFC 7914. 32 MiB and about 0.1 s: the passphrase has 100 bits, so the hash need not make up for a weak one.
COST, BLOCK, PARALLEL = 2**15, 8, 1
# Crockford's base 32: letters that are mistaken for a digit, or for each other, are not in it.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_GROUPS, _IN_GROUP = 4, 5
_MISREAD = str.maketrans({"o": "0", "i": "1", "l": "1", "-": None, " ": None})
MOST_TYPED = 200  # characters


class KeptLogin(Frozen):
    """What the file says. The costs are fixed: a file cannot ask for a gigabyte, nor for a hash that is cheap."""

    version: Literal[1] = 1
    salt: Annotated[Base64Bytes, Field(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    hash: Annotated[Base64Bytes, Field(min_length=HASH_BYTES, max_length=HASH_BYTES)]


@dataclass(frozen=True, slots=True)
class Login:
    """A login as it stands on the disk now; `digest` changes when it is renewed."""

    kept: KeptLogin
    digest: str

    def fits(self, typed: str) -> bool:
        """Whether this is the passphrase, in constant time; upper case, spaces and dashes do not matter."""
        try:
            _scrypt(self.kept.salt).verify(_normal(typed[:MOST_TYPED]), self.kept.hash)
        except InvalidKey:
            return False
        return True


def make_login(folder: Path, entropy: Callable[[int], bytes]) -> str:
    """Make the login of the state folder `folder`, or a new one; returns the passphrase, which is kept nowhere.

    Sessions of the one before end. Raises `ConfigError` if it cannot be written.
    """
    letters = "".join(ALPHABET[byte % len(ALPHABET)] for byte in entropy(_GROUPS * _IN_GROUP))
    passphrase = "-".join(letters[at : at + _IN_GROUP] for at in range(0, len(letters), _IN_GROUP))
    salt = entropy(SALT_BYTES)
    hashed = encode_base64(_scrypt(salt).derive(_normal(passphrase)))
    kept = KeptLogin.model_validate({"salt": encode_base64(salt), "hash": hashed})
    try:
        write_private(folder / FILE_NAME, kept.model_dump_json().encode())
    except OSError as why:
        raise ConfigError(f"{folder / FILE_NAME} cannot be written: {why}. Look at the disk and the owner") from why
    return passphrase


def read_login(folder: StateFolder) -> Login:
    """Raises `ConfigError` with the fix for a file that is not there, is open to others, or is damaged."""
    path = folder.root / FILE_NAME
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others: run `chmod 600 {path}`, then {RENEW}")
        data = path.read_bytes()
        return Login(KeptLogin.model_validate_json(data), hashlib.sha256(data).hexdigest())
    except FileNotFoundError as why:
        raise ConfigError(f"the console has no login yet: {RENEW}") from why
    except ValidationError:
        raise ConfigError(f"{path} is damaged: {RENEW}") from None  # its text would quote what is in the file
    except OSError as why:
        raise ConfigError(f"{path} cannot be read: {why}. Run the console as the user that owns its folder") from why


def _normal(typed: str) -> bytes:
    return typed.strip().lower().translate(_MISREAD).encode()


def _scrypt(salt: bytes) -> Scrypt:
    return Scrypt(salt=salt, length=HASH_BYTES, n=COST, r=BLOCK, p=PARALLEL)
