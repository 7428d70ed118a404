"""`read_leaf` for logs of 100,000 entries: the same answers, several times as fast.

It takes no short cut through the rules: the event is parsed into its frozen type, and the entry is written again from
what was parsed and compared with the bytes that were read. Only the JSON is read and written by the standard library,
where that is RFC 8785 (`compliance.quick_json`). What it is not sure of, `compliance.trail.read_leaf` decides.
"""

from dataclasses import dataclass

from boundary.errors import MalformedMessage
from boundary.names import decode_base64, parse_timestamp
from compliance import quick_json
from compliance.events import EVENTS, AnyEvent
from compliance.trail import LEAF_VERSION, SALT_BYTES, read_leaf


@dataclass(frozen=True, slots=True)
class Read:
    """What the checks use of an entry. `time` has one form: as text it sorts as the moments do."""

    log: str
    sequence: int
    time: str
    event: AnyEvent


def read(data: bytes, log: str, actors: frozenset[str]) -> Read:
    """Parse an entry of `log`; `actors` are names that are known to be well formed. Raises as `read_leaf` does."""
    try:
        return _quickly(data, log, actors)
    except quick_json.Unsure:
        leaf = read_leaf(data)
        return Read(leaf.log, leaf.sequence, leaf.time, leaf.event)


def _quickly(data: bytes, log: str, actors: frozenset[str]) -> Read:
    match quick_json.loads(data):
        case {
            "log": str(of), "seq": int(sequence), "time": str(time), "actor": str(actor), "salt": str(salt),
            "event": str(name), "data": dict(content),
        } if of == log and actor in actors and sequence >= 1 and name in EVENTS:  # fmt: skip
            try:
                event = EVENTS[name].model_validate(content)
                parse_timestamp(time)
                grains = decode_base64(salt)
            except ValueError as why:
                raise MalformedMessage(f"audit entry {name}: {why}") from why
            if len(grains) == SALT_BYTES and data == quick_json.dumps(
                {
                    "v": LEAF_VERSION,
                    "log": log,
                    "seq": sequence,
                    "time": time,
                    "actor": actor,
                    "salt": salt,
                    "event": name,
                    "data": event.model_dump(mode="json"),
                }
            ):
                return Read(log, sequence, time, event)
    raise quick_json.Unsure
