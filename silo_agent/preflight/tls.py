"""The check of TLS to the relay: which certificate is shown to us, and whether enrolment's CA issued it.

Twice: once only to see the certificate, believing nothing and sending nothing, once as the daemon does. What the
network team needs to find the device that opens TLS is in the first.
"""

import ssl
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from silo_agent.destination import spki_of
from silo_agent.errors import AgentError
from silo_agent.plain import plain
from silo_agent.policy.files import load_policy
from silo_agent.policy.model import Policy
from silo_agent.preflight.finding import Check, Finding, fail
from silo_agent.preflight.line import secured
from silo_agent.preflight.network import way_to_relay
from silo_agent.preflight.rules import judge_relay
from silo_agent.preflight.setting import Setting

# OpenSSL, x509_vfy.h
_NOT_YET, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
_OTHER_NAME = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


@dataclass(frozen=True, slots=True)
class Seen:
    """What a server says of itself: not believed, only shown. `spki` is the SHA-256 of its public key, in hex."""

    subject: str
    issuer: str
    spki: str
    not_before: datetime
    not_after: datetime

    @classmethod
    def of(cls, der: bytes) -> "Seen":
        """Raises `ValueError`."""
        read = x509.load_der_x509_certificate(der)
        return cls(
            plain(read.subject.rfc4514_string()) or "(no name)",
            plain(read.issuer.rfc4514_string()) or "(no name)",
            spki_of(der),
            read.not_valid_before_utc,
            read.not_valid_after_utc,
        )

    @property
    def sentence(self) -> str:
        return f"certificate of {self.subject}, issued by {self.issuer}, SPKI sha256:{self.spki}"


async def tls(setting: Setting) -> Finding:
    host = setting.relay.host
    try:
        seen = await _looked_at(setting)
    except (OSError, ValueError) as why:
        return fail(
            Check.TLS,
            f"{host} does not finish a TLS handshake ({_cause(why)})",
            f"Ask the network team to let TLS to {host} pass unopened; if they do, ask the coordinator about the relay",
        )
    try:
        version = await _believed(setting)
    except OSError as why:
        return judge_tls(seen, why, host, setting.now())
    said = f"{seen.sentence}; of the CA that enrolment pinned; {version}"
    return judge_relay(said, host, setting.relay.port, seen.spki, _policy(setting))


def _policy(setting: Setting) -> Policy | None:
    """None while none is in force, which another check says."""
    try:
        return load_policy(setting.folder.root).policy
    except AgentError:
        return None


async def _looked_at(setting: Setting) -> Seen:
    """Without our certificate: whoever opens TLS here gets nothing of ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with way_to_relay(setting) as line:
        secure = await secured(line, context, setting.relay.host, setting.network_seconds)
        shown = secure.get_extra_info("ssl_object")
        der = None if shown is None else shown.getpeercert(binary_form=True)
        await secure.aclose()
    if not der:
        raise ValueError("no certificate was shown")
    return Seen.of(der)


async def _believed(setting: Setting) -> str:
    """As the daemon does it: TLS 1.3, the pinned CA, the relay's name. Returns the version."""
    async with way_to_relay(setting) as line:
        secure = await secured(line, setting.pinned(), setting.relay.host, setting.network_seconds)
        version = str(secure.get_extra_info("ssl_object").version())
        await secure.aclose()
    return version


def judge_tls(seen: Seen, why: OSError, host: str, now: datetime) -> Finding:
    """Pure: why the daemon does not believe what was seen. A wrong clock is said as such, not as an attack.

    OpenSSL looks at dates when the chain is of our CA: a date that is off says that nothing opens TLS.
    """
    code = why.verify_code if isinstance(why, ssl.SSLCertVerificationError) else None
    if code == _NOT_YET:
        begins = f"{seen.not_before:%Y-%m-%d %H:%M} UTC"
        said = f"our clock says {now:%Y-%m-%d %H:%M} UTC, the relay's certificate begins in the future: {begins}"
        return fail(Check.CLOCK, said, "Set this machine's clock by NTP (timedatectl set-ntp true)")
    if code == _EXPIRED:
        said = f"{seen.sentence}: it, or its CA, has expired by our clock (until {seen.not_after:%Y-%m-%d %H:%M} UTC)"
        return fail(Check.TLS, said, "Compare this machine's clock first; if it is right, the coordinator must renew")
    if code in _OTHER_NAME:
        said = f"{seen.sentence}: it is not for {host}"
        return fail(Check.TLS, said, f"Ask the coordinator for a certificate that names {host}, or a new invitation")
    if code is None:
        said = f"{seen.sentence}; the handshake as the agent needs it fails ({_cause(why)})"
    else:
        said = f"{seen.sentence}: not of the CA that enrolment pinned. Something between us opens TLS"
    return fail(
        Check.TLS,
        said,
        f"Ask the network team to exempt {host} from TLS inspection (TLS 1.3, passed on unopened) and show them this "
        "issuer; if nothing inspects, ask the coordinator whether the relay's CA was changed",
    )


def _cause(why: Exception) -> str:
    if isinstance(why, TimeoutError):
        return "no answer in time"
    return str(getattr(why, "reason", None) or why or type(why).__name__)
