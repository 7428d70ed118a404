"""Checks of the way to the relay up to its door: names, the proxy, the connection."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from silo_agent.errors import ConfigError
from silo_agent.plain import plain
from silo_agent.preflight.finding import Check, Finding, fail, ok
from silo_agent.preflight.line import Line, ProxyAnswer, ask_through, secured
from silo_agent.preflight.setting import Setting
from silo_agent.way_out import AUTHORITY, CREDENTIALS, ProxyNotTrusted, WayOut

_UPSTREAM = {502, 503, 504}


async def names(setting: Setting) -> Finding:
    """The relay's name. Behind a proxy it is the proxy that must know it, and often only the proxy does."""
    relay = setting.relay
    try:
        found = await setting.resolve(relay.host, relay.port)
    except OSError as why:
        if setting.config.proxy is not None:
            return ok(Check.NAMES, f"{relay.host} is unknown here; the proxy has to know it")
        return fail(
            Check.NAMES,
            f"{relay.host} has no address here ({why.strerror or why})",
            f"Ask the network team to let this machine's DNS resolve {relay.host}, or to name the proxy for agent.toml",
        )
    return ok(Check.NAMES, f"{relay.host} is {', '.join(found)}")


async def connection(setting: Setting) -> Finding:
    """TCP to the relay, where no proxy stands between."""
    relay = setting.relay
    if setting.config.proxy is not None:
        return ok(Check.CONNECTION, "through the proxy")
    try:
        line = await setting.connect(relay.host, relay.port, setting.network_seconds)
    except OSError as why:
        said = f"{relay.host} port {relay.port}: {_cause(why)}"
        return fail(
            Check.CONNECTION,
            said,
            f"Ask the network team to allow this machine out to {relay.host} port {relay.port} (TCP), or to name the "
            "proxy for agent.toml; if they see nothing stopped, ask the coordinator whether the relay runs",
        )
    await line.aclose()
    return ok(Check.CONNECTION, f"{relay.host} port {relay.port} is open")


async def proxy(setting: Setting) -> Finding:
    """Its name, its port, its own TLS, then CONNECT without a login and, if it wants one, with ours."""
    try:
        way = setting.way_out
        if way is not None:
            way.context()
    except ConfigError as why:
        return fail(Check.PROXY, str(why), f"Put agent.toml, {CREDENTIALS} or {AUTHORITY} right as it says")
    if way is None:
        return ok(Check.PROXY, "none in agent.toml")
    try:
        await setting.resolve(way.host, way.port)
    except OSError as why:
        said = f"{way.host} has no address here ({why.strerror or why})"
        return fail(Check.PROXY, said, "Correct the proxy's name in agent.toml, or ask the network team for it")
    return await _tried(setting, way)


async def _tried(setting: Setting, way: WayOut) -> Finding:
    relay = setting.relay
    target = f"{relay.host} port {relay.port}"
    try:
        answer = await _asked(setting, way, login=False)
        logged_in = way.login is not None and _wants_basic(answer)
        if logged_in:
            answer = await _asked(setting, way, login=True)
        return judge_proxy(answer, way, target, logged_in=logged_in)
    except ProxyNotTrusted as why:
        fix = f"Put the CA of the proxy, from the network team, as {AUTHORITY} into the state folder"
        return fail(Check.PROXY, str(why), fix)
    except ssl.SSLError as why:
        fix = "If the proxy speaks no TLS itself, write http:// before it in agent.toml; else ask the network team"
        return fail(Check.PROXY, f"{way.url}: TLS to the proxy itself fails ({_cause(why)})", fix)
    except OSError as why:
        fix = "Correct proxy in agent.toml, or ask the network team for the proxy's address and leave to reach it"
        return fail(Check.PROXY, f"{way.url}: {_cause(why)}", fix)


def _wants_basic(answer: ProxyAnswer) -> bool:
    """A proxy that just hangs up may want a login all the same; one that names other ways wants no password of ours."""
    return answer.silent or (answer.status == 407 and "basic" in answer.schemes)


async def _asked(setting: Setting, way: WayOut, *, login: bool) -> ProxyAnswer:
    line = await _to_proxy(setting, way)
    try:
        relay = setting.relay
        return await ask_through(line, relay.host, relay.port, way.login if login else None, setting.network_seconds)
    finally:
        await line.aclose()


async def _to_proxy(setting: Setting, way: WayOut) -> Line:
    line = await setting.connect(way.host, way.port, setting.network_seconds)
    context = way.context()
    if context is None:
        return line
    try:
        return await secured(line, context, way.host, setting.network_seconds)
    except ssl.SSLError:
        raise
    except OSError as why:  # nothing came back, or it hung up: it has no idea of TLS
        raise ssl.SSLError(why.errno or 0, "no answer to a handshake") from why


def judge_proxy(answer: ProxyAnswer, way: WayOut, target: str, *, logged_in: bool) -> Finding:
    """Pure: what its answer to CONNECT means. `target` in words; `logged_in`: the answer is to a login of ours."""
    if answer.is_open:
        return ok(Check.PROXY, f"{way.url} lets us through{' with our login' if logged_in else ', without a login'}")
    said, fix = _refusal(answer, target, logged_in=logged_in)
    return fail(Check.PROXY, f"{way.url} {said}", fix)


def _refusal(answer: ProxyAnswer, target: str, *, logged_in: bool) -> tuple[str, str]:
    allow = f"Ask the network team to allow CONNECT to {target} for this machine"
    match answer.status:
        case 0 if answer.silent:
            return "closes the connection without an answer", f"{allow}, and whether it wants a login or https://"
        case 0:
            return "answers with something that is not a proxy's", "Correct proxy in agent.toml: host and port"
        case 407:
            return _login_refusal(answer, target, logged_in=logged_in)
        case status if 200 <= status < 300:
            return "answers CONNECT with a web page, as a portal does", f"{allow} without the portal"
        case status if status in _UPSTREAM:
            return f"cannot reach {target} itself ({status})", "Ask the network team why; then the coordinator"
        case status:
            return f"forbids {target} ({status})", allow


def _login_refusal(answer: ProxyAnswer, target: str, *, logged_in: bool) -> tuple[str, str]:
    if "basic" not in answer.schemes:
        ways = plain(", ".join(answer.schemes)) or "an unnamed way"
        said = f"asks for a login (407) by {ways}; the agent logs in by Basic only"
        return said, f"Ask the network team for a Basic login, or to let this machine to {target} without one"
    if logged_in:
        return "refuses our user or password (407)", f"Correct {CREDENTIALS} in the state folder, then check again"
    fix = f"Write user:password into {CREDENTIALS} in the state folder and run chmod 600 on it"
    return "asks for a login (407) and there is none", fix


@asynccontextmanager
async def way_to_relay(setting: Setting) -> AsyncIterator[Line]:
    """A line to the relay, through the proxy if there is one. Raises `OSError`, `ConfigError`."""
    way, relay = setting.way_out, setting.relay
    if way is None:
        line = await setting.connect(relay.host, relay.port, setting.network_seconds)
    else:
        line = await _to_proxy(setting, way)
    try:
        if way is not None:
            answer = await ask_through(line, relay.host, relay.port, way.login, setting.network_seconds)
            if not answer.is_open:
                raise OSError(f"the proxy does not let us through any more ({answer.status})")
        yield line
    finally:
        await line.aclose()


def _cause(why: OSError) -> str:
    if isinstance(why, TimeoutError):
        return "no answer in time: a firewall drops it silently, or the host is off"
    return why.strerror or getattr(why, "reason", None) or str(why) or type(why).__name__
