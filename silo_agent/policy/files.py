"""The policy on the disk of one agent: what is in force, what is proposed, and who has signed.

| file | is |
|---|---|
| `policy.toml`, `policy.sig` | the policy in force, as its people wrote it, and their signatures |
| `approvers.json` | the pin (`silo_agent.policy.adoption`), mode 0600 |
| `policy.proposed.toml`, `policy.proposed.sig` | the next one, while signatures are collected |

The pin is replaced first and in one step. Whoever is killed after that finishes with another `adopt`; until then
`load_policy` refuses, because the text that people read is not the one in force.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from boundary.canonical import parse_canonical
from boundary.errors import PeerFault
from boundary.identity import SigningIdentity
from silo_agent.errors import ConfigError
from silo_agent.policy.adoption import Pin, PolicyInForce, Standing, check_standing, first_pin, next_pin, pin_json
from silo_agent.policy.model import MAX_POLICY_BYTES, Policy, digest_of, parse_policy
from silo_agent.policy.signing import (
    MAX_SIGNATURES_BYTES,
    PolicySignatures,
    add_signature,
    merged,
    parse_signatures,
    to_json,
    unsigned,
)
from silo_agent.policy.tightening import Change, changes
from silo_agent.state import write_private

_MAX_PIN_BYTES = 8 * MAX_POLICY_BYTES  # JSON says what TOML says in a few times as many bytes at most


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """Where the policy of one agent lies."""

    root: Path

    @property
    def policy(self) -> Path:
        return self.root / "policy.toml"

    @property
    def signatures(self) -> Path:
        return self.root / "policy.sig"

    @property
    def pin(self) -> Path:
        return self.root / "approvers.json"

    @property
    def proposed(self) -> Path:
        return self.root / "policy.proposed.toml"

    @property
    def waiting(self) -> Path:
        """The text that waits for signatures: the first policy while none is in force."""
        return self.proposed if self.pin.exists() else self.policy

    @property
    def proposed_signatures(self) -> Path:
        return self.root / "policy.proposed.sig"


@dataclass(frozen=True, slots=True)
class Adopted:
    """The policy that is now in force and what it changed; no changes if it was in force already."""

    force: PolicyInForce
    changed: tuple[Change, ...]


def load_policy(root: Path) -> PolicyInForce:
    """The policy in force. Raises `ConfigError` or `PolicyRefused`, each with the fix; changes nothing.

    It may have expired: that is asked of every request, so that an agent can still say so.
    """
    files = PolicyFiles(root)
    with _held(root, fcntl.LOCK_SH):
        return _in_force(files, _read_pin(files))


def begin(root: Path, site: str, now: datetime) -> PolicyInForce:
    """Pin policy.toml as the first policy of this hospital. Raises as `load_policy`, and if there is a pin already."""
    files = PolicyFiles(root)
    with _held(root, fcntl.LOCK_EX):
        if files.pin.exists():
            raise ConfigError(f"{files.pin} is there: a policy is in force. Propose the new one in {files.proposed}")
        policy = _read_policy(files.policy)
        pin = first_pin(policy, _read_signatures(files.signatures), site, now)
        write_private(files.pin, pin_json(pin))
        return _in_force(files, pin)


def adopt(root: Path, now: datetime) -> Adopted:
    """Put the proposed policy into force. Raises `PolicyRefused` with who still has to sign; then nothing changed."""
    files = PolicyFiles(root)
    with _held(root, fcntl.LOCK_EX):
        pin = _read_pin(files)
        proposed = _read_policy(files.proposed)
        if digest_of(proposed) == digest_of(pin.policy):
            return Adopted(_finish(files, pin), ())
        signatures = _read_signatures(files.proposed_signatures)
        following = next_pin(pin, proposed, signatures, now)
        write_private(files.pin, pin_json(following))
        return Adopted(_finish(files, following), changes(pin.policy, proposed))


def sign(data: bytes, key: SigningIdentity, role: str, *, number: int = 1) -> PolicySignatures:
    """One person's signature over the bytes of a policy.toml, as a file that `add_signatures` takes.

    For somebody whose key is on another machine. Raises `ConfigError` for a policy that does not parse.
    """
    policy = parse_policy(data, "the policy")
    return add_signature(unsigned(policy, number), policy, key, role)


def sign_here(root: Path, key: SigningIdentity, role: str) -> PolicySignatures:
    """Add a signature to the proposed policy, or to the first one while nothing is in force. Raises `ConfigError`."""
    files = PolicyFiles(root)
    with _held(root, fcntl.LOCK_EX):
        policy, number, path = _waiting(files)
        _check_may_sign(files, policy, key.public.text, role)
        file = add_signature(_collected(path, policy, number), policy, key, role)
        write_private(path, to_json(file))
        return file


def add_signatures(root: Path, data: bytes) -> PolicySignatures:
    """Add what `sign` gave on another machine.

    Raises `ConfigError` if it is for another policy or number, or of somebody who is no approver: it would count for
    nothing, and look as if it did.
    """
    files = PolicyFiles(root)
    with _held(root, fcntl.LOCK_EX):
        policy, number, path = _waiting(files)
        given = parse_signatures(data, "the signature")
        file = merged(_collected(path, policy, number), given)
        for one in given.signatures:
            _check_may_sign(files, policy, one.key, one.role)
        write_private(path, to_json(file))
        return file


def read_proposed(root: Path) -> tuple[Policy, Policy | None]:
    """The policy that waits for signatures, and the one in force if there is one. Raises `ConfigError`."""
    files = PolicyFiles(root)
    with _held(root, fcntl.LOCK_SH):
        policy, _, _ = _waiting(files)
        return policy, _read_pin(files).policy if files.pin.exists() else None


def next_number(root: Path) -> int:
    """The number that the next policy will have, which its approvers sign. Raises `ConfigError`."""
    files = PolicyFiles(root)
    return _read_pin(files).number + 1 if files.pin.exists() else 1


def _in_force(files: PolicyFiles, pin: Pin) -> PolicyInForce:
    policy = _read_policy(files.policy)
    standing = Standing(pin, _read_signatures(files.signatures))
    check_standing(policy, standing)
    return PolicyInForce(policy, digest_of(policy), standing)


def _finish(files: PolicyFiles, pin: Pin) -> PolicyInForce:
    """Copy the adopted proposal over the files of the one before, then remove it. Can be done again after a crash."""
    if files.proposed_signatures.exists():
        signatures = _read_signatures(files.proposed_signatures)
        if signatures.number == pin.number:
            write_private(files.signatures, to_json(signatures))
    write_private(files.policy, _read(files.proposed, MAX_POLICY_BYTES))
    force = _in_force(files, pin)
    files.proposed_signatures.unlink(missing_ok=True)
    files.proposed.unlink(missing_ok=True)
    return force


def _waiting(files: PolicyFiles) -> tuple[Policy, int, Path]:
    """The policy that waits for signatures, its number, and where they are kept."""
    signatures = files.proposed_signatures if files.pin.exists() else files.signatures
    return _read_policy(files.waiting), next_number(files.root), signatures


def _collected(path: Path, policy: Policy, number: int) -> PolicySignatures:
    """Signatures so far; those of an earlier draft or number are worth nothing and are left out."""
    if path.exists():
        file = _read_signatures(path)
        if (file.digest, file.number) == (digest_of(policy), number):
            return file
    return unsigned(policy, number)


def _check_may_sign(files: PolicyFiles, policy: Policy, key: str, role: str) -> None:
    members = policy.approvers.members
    if files.pin.exists():
        members |= _read_pin(files).policy.approvers.members
    if (role, key) not in members:
        raise ConfigError(
            f"the key {key} is not the {role}'s in this policy or the one in force: sign with the key "
            "that [approvers] names for the role"
        )


def _read_pin(files: PolicyFiles) -> Pin:
    try:
        mode = files.pin.stat().st_mode
    except OSError as why:
        raise ConfigError(
            f"{files.pin} cannot be read ({why.strerror}), so no policy is in force: have policy.toml signed by its "
            "approvers and run `silo-agent policy begin`, or restore the file from the backup if one was in force"
        ) from why
    if mode & 0o077:
        raise ConfigError(f"{files.pin} is open to others (mode {mode & 0o777:03o}): run `chmod 600 {files.pin}`")
    try:
        value = parse_canonical(_read(files.pin, _MAX_PIN_BYTES), limit=_MAX_PIN_BYTES)
        return Pin.model_validate(value)
    except (PeerFault, ValueError) as why:  # ValueError: pydantic's
        raise ConfigError(f"{files.pin} is damaged: restore it from the backup of the state folder") from why


def _read_policy(path: Path) -> Policy:
    return parse_policy(_read(path, MAX_POLICY_BYTES), str(path))


def _read_signatures(path: Path) -> PolicySignatures:
    return parse_signatures(_read(path, MAX_SIGNATURES_BYTES), str(path))


def _read(path: Path, limit: int) -> bytes:
    """At most one byte more than `limit`, which is enough to refuse it."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except FileNotFoundError as why:
        raise ConfigError(f"{path} does not exist: {_FIXES.get(path.name, 'restore it')}") from why
    except OSError as why:
        raise ConfigError(f"{path} cannot be read ({why.strerror}): let the agent's user read it") from why


_FIXES = {
    "policy.toml": "run `silo-agent init` first, or restore it from the backup",
    "policy.sig": "have the policy signed with `silo-agent policy sign`",
    "policy.proposed.toml": "write the new policy there first",
    "policy.proposed.sig": "have the new policy signed with `silo-agent policy sign`",
}


@contextmanager
def _held(root: Path, how: int) -> Iterator[None]:
    """Hold the folder, so that nobody reads half of a change."""
    try:
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as why:
        raise ConfigError(f"{root} cannot be read ({why.strerror}): run `silo-agent init` first") from why
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)
