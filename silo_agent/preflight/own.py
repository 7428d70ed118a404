"""Checks of the agent's own files: agent.toml, state folder, keys, enrolment, certificate."""

import os
import sqlite3
import stat
from pathlib import Path

from boundary.errors import BoundaryError
from boundary.roster import TrustedRoster
from silo_agent.certificate import RENEWAL, read_certificate
from silo_agent.daemon import ROSTER
from silo_agent.errors import ConfigError
from silo_agent.preflight.finding import Check, Finding, fail, ok, warn
from silo_agent.preflight.setting import Setting
from silo_agent.state import DATASET_KEY_BYTES

_KEYS = ("identity.pem", "steward.pem", "sealing.key", "dataset.key", "tls.key")
_RESTORE = "Restore the state folder from its backup; keys are made once and never again"


async def config(setting: Setting) -> Finding:
    try:
        read = setting.config
    except ConfigError as why:
        return fail(Check.CONFIG, str(why), "Correct agent.toml as docs/hospital.md shows it, then check again")
    return ok(Check.CONFIG, read.site)


async def state(setting: Setting) -> Finding:
    """Modes and owner. A check by another user would leave files that the agent then cannot open."""
    root = setting.folder.root
    try:
        status = root.stat()
    except OSError as why:
        return fail(Check.STATE, f"{root}: {why.strerror}", "Run `silo-agent init`, or name the folder with --state")
    if not stat.S_ISDIR(status.st_mode):
        return fail(Check.STATE, f"{root} is not a folder", "Name the agent's state folder with --state")
    if status.st_uid != os.geteuid():
        return fail(
            Check.STATE,
            f"{root} belongs to user {status.st_uid}, this check runs as user {os.geteuid()}",
            f"Run the check as the agent's user: sudo -u '#{status.st_uid}' silo-agent check",
        )
    return _modes(setting)


def _modes(setting: Setting) -> Finding:
    folder = setting.folder
    try:
        folder.check_private()
    except ConfigError as why:
        return fail(Check.STATE, str(why), f"Run `chmod 700 {folder.root}`")
    for inner in (folder.root, folder.work, folder.cache, folder.models):
        if not inner.is_dir():
            return fail(Check.STATE, f"{inner} is not there", f"Run `mkdir -m 700 {inner}` as the agent's user")
        if not os.access(inner, os.R_OK | os.W_OK | os.X_OK):
            return fail(
                Check.STATE, f"{inner} cannot be written by us", f"Run `chmod 700 {inner}`; look for `ro` mounts"
            )
    inside = (path for path in folder.root.iterdir() if path.name != "lost+found")  # of a disk of its own, root's
    stranger = next((path for path in inside if path.lstat().st_uid != os.geteuid()), None)
    if stranger is not None:
        return fail(
            Check.STATE, f"{stranger} belongs to another user", f"Run `chown {os.geteuid()} {stranger}` as root"
        )
    return ok(Check.STATE, f"{folder.root} is ours alone")


async def keys(setting: Setting) -> Finding:
    """Every key is there, for us alone, and is a key."""
    folder = setting.folder
    for name in _KEYS:
        if (trouble := _mode_of(folder.root / name)) is not None:
            return trouble
    try:
        card, steward = folder.card(setting.config.site), folder.steward.public
        folder.csr(setting.config.site)  # takes the TLS key
        size = folder.dataset_key_file.stat().st_size
    except ConfigError as why:
        return fail(Check.KEYS, str(why), _RESTORE)
    if size != DATASET_KEY_BYTES:
        return fail(Check.KEYS, f"{folder.dataset_key_file} has {size} bytes, not {DATASET_KEY_BYTES}", _RESTORE)
    if card.signing_key == steward.text:
        return fail(Check.KEYS, "the agent and its steward have the same key", _RESTORE)
    return ok(Check.KEYS, f"fingerprint {folder.identity.public.fingerprint}")


def _mode_of(path: Path) -> Finding | None:
    try:
        mode = path.stat().st_mode
    except OSError as why:
        return fail(Check.KEYS, f"{path}: {why.strerror}", _RESTORE)
    if mode & 0o077:
        return fail(Check.KEYS, f"{path} can be read by others (mode {mode & 0o777:03o})", f"Run `chmod 600 {path}`")
    return None if os.access(path, os.R_OK) else fail(Check.KEYS, f"{path} cannot be read by us", f"chmod 600 {path}")


async def enrolment(setting: Setting) -> Finding:
    if setting.invitation is not None:
        return _invited(setting)
    if not setting.folder.tls_certificate.exists() or not setting.folder.journal.exists():
        return fail(
            Check.ENROLMENT,
            "this agent is not enrolled",
            "Ask the coordinator for an invitation and run `silo-agent enrol INVITATION`; this check tries the network "
            "before, with `--invitation FILE`",
        )
    try:
        roster = TrustedRoster.kept(setting.fact(ROSTER)).roster
    except (ConfigError, sqlite3.Error) as why:
        fix = "Give the disk space and the agent's user its file; a damaged journal comes from the backup"
        return fail(Check.ENROLMENT, f"{setting.folder.journal.name}: {why}", fix)
    except (BoundaryError, ValueError, LookupError, TypeError):
        return fail(
            Check.ENROLMENT,
            "the roster in the journal is damaged",
            "Restore the state folder from its backup, or enrol with a new invitation: all keys are kept",
        )
    if setting.now() >= roster.expires_at:
        said = f"the roster expired at {roster.expires_at:%Y-%m-%d %H:%M} UTC"
        return warn(Check.ENROLMENT, said, "Ask the coordinator to issue a new roster")
    return ok(Check.ENROLMENT, f"relay {setting.relay.host}, roster version {roster.version}")


def _invited(setting: Setting) -> Finding:
    fix = "Ask the coordinator for a new invitation file for this hospital"
    try:
        paper = setting.invited
    except ConfigError as why:
        is_ours = isinstance(why.__cause__, OSError)
        return fail(Check.ENROLMENT, str(why), "Put the file right, then check again" if is_ours else fix)
    if paper is None or setting.now() >= paper.expires_at:
        return fail(Check.ENROLMENT, f"{setting.invitation} has expired", fix)
    return ok(Check.ENROLMENT, f"invited to {paper.relay_url} until {paper.expires_at:%Y-%m-%d %H:%M} UTC")


async def certificate(setting: Setting) -> Finding:
    """Warns at `certificate.WARN_DAYS`."""
    try:
        read = read_certificate(setting.folder.tls_certificate)
        setting.tls_files.context()
    except ConfigError as why:
        return fail(
            Check.CERTIFICATE, str(why), "Restore it from the backup, or enrol with a new invitation: all keys are kept"
        )
    now = setting.now()
    said, fix = read.sentence(now).partition(f": {RENEWAL}")[0], RENEWAL[0].upper() + RENEWAL[1:]
    match read.stage(now):
        case None:
            return ok(Check.CERTIFICATE, said)
        case 0:
            return fail(Check.CERTIFICATE, said, fix)
        case _:
            return warn(Check.CERTIFICATE, said, fix)
