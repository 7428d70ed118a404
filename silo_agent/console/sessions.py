"""Who is logged in, in memory only: a restart of the console logs everybody out."""

import hashlib
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

IDLE, ABSOLUTE = timedelta(minutes=15), timedelta(hours=8)  # OWASP session management: a high-value application
MOST_SESSIONS = 8
TOKEN_BYTES = 32
WRONG_BEFORE_WAIT, WAIT = 5, timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Session:
    """`token` is what every form of this session carries; `login` is the digest of the login it was opened with."""

    token: str = field(repr=False)
    login: str = field(repr=False)
    begun: datetime
    seen: datetime

    def is_live(self, login: str | None, now: datetime) -> bool:
        """A renewed login ends the sessions of the one before."""
        return self.login == login and now - self.seen < IDLE and now - self.begun < ABSOLUTE


class Sessions:
    """Kept by the hash of their cookie: how long a look-up takes says nothing about the cookies there are."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy, self._live = entropy, dict[str, Session]()

    def open(self, login: str, now: datetime) -> str:
        """A new session; returns its cookie. The one that was used longest ago makes room."""
        cookie = _text(self._entropy(TOKEN_BYTES))
        if len(self._live) >= MOST_SESSIONS:
            del self._live[min(self._live, key=lambda key: self._live[key].seen)]
        self._live[_key(cookie)] = Session(_text(self._entropy(TOKEN_BYTES)), login, now, now)
        return cookie

    def find(self, cookie: str | None, login: str | None, now: datetime) -> Session | None:
        """The session of this cookie if it is still live, which is then used `now`."""
        key = _key(cookie or "")
        session = self._live.get(key)
        if session is None:
            return None
        if not session.is_live(login, now):
            del self._live[key]
            return None
        self._live[key] = replace(session, seen=now)
        return session

    def close(self, cookie: str | None) -> None:
        self._live.pop(_key(cookie or ""), None)


class WrongGuesses:
    """At most `WRONG_BEFORE_WAIT` wrong passphrases in `WAIT`, whoever sends them: all come from this machine."""

    def __init__(self) -> None:
        self._times = deque[datetime](maxlen=WRONG_BEFORE_WAIT)

    def seconds_to_wait(self, now: datetime) -> int:
        """0 if a passphrase may be tried now."""
        if len(self._times) < WRONG_BEFORE_WAIT:
            return 0
        left = (self._times[0] + WAIT - now).total_seconds()
        return max(0, int(-(-left // 1)))

    def add(self, now: datetime) -> None:
        self._times.append(now)


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def _key(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()
