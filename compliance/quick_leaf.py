"""`read_leaf` for logs of 100,000 entries: the same answers, several times as fast.

It takes no short cut through the rules: the event is parsed into its frozen type, and written again from that and
compared with the bytes that were read. Only the JSON is read and written by other means, where that is RFC 8785
(`compliance.quick_json`), and the members around the event by their places: their keys have one order, and 16 bytes of
salt one form. What is not exactly of that form, `compliance.trail.read_leaf` decides.
"""

import re
from dataclasses import dataclass

from boundary.errors import MalformedMessage
from boundary.names import parse_timestamp
from compliance import quick_json
from compliance.events import EVENTS, AnyEvent
from compliance.trail import read_leaf

_LEAF = re.compile(
    rb'\{"actor":"(?P<actor>[a-z0-9-]+)","data":(?P<data>\{.*\}),"event":"(?P<event>[a-z-]+)","log":"(?P<log>[a-z0-9-]+)",'
    rb'"salt":"[A-Za-z0-9+/]{21}[AQgw]==","seq":(?P<seq>[1-9][0-9]{0,14}),"time":"(?P<time>[0-9TZ:.-]+)","v":2\}'
)


@dataclass(slots=True)
class Read:
    """What is used of an entry. `time` has one form: as text it sorts as the moments do."""

    log: str
    sequence: int
    time: str
    actor: str
    event: AnyEvent


def read(data: bytes, log: str, actors: frozenset[str]) -> Read:
    """Parse an entry of `log`; `actors` are names that are known to be well formed. Raises as `read_leaf` does."""
    try:
        return _quickly(data, log, actors)
    except quick_json.Unsure:
        leaf = read_leaf(data)
        return Read(leaf.log, leaf.sequence, leaf.time, leaf.actor, leaf.event)


def _quickly(data: bytes, log: str, actors: frozenset[str]) -> Read:
    found = _LEAF.fullmatch(data)
    if found is None:
        raise quick_json.Unsure
    content = found["data"]
    actor, name, of, sequence, time = found.group("actor", "event", "log", "seq", "time")
    kind = EVENTS.get(name.decode())
    if of.decode() != log or actor.decode() not in actors or kind is None:
        raise quick_json.Unsure
    try:
        value, moment = quick_json.loads(content), time.decode()
        event = kind.model_validate(value)
        parse_timestamp(moment)
    except ValueError as why:
        raise MalformedMessage(f"audit entry {kind.event}: {why}") from why
    if event.model_dump(mode="json") != value:
        raise quick_json.Unsure
    return Read(log, int(sequence), moment, actor.decode(), event)
