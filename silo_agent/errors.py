"""What can go wrong on the hospital's side. Each has a code; the sentence is for the hospital's own people."""

import errno


class AgentError(Exception):
    """Root of the agent's own errors. `exit_code` is what the process ends with when it is fatal."""

    code = "AGENT"
    exit_code = 1


class ConfigError(AgentError):
    """agent.toml or the state folder is missing or wrong. The sentence names the fix."""

    code = "CONFIG"
    exit_code = 2


class StateUnavailable(ConfigError):
    """The state folder cannot be written just now: a full disk, or a lock. Nothing in it is wrong.

    So the exit code is the common one, with which whoever started the agent starts it again.
    """

    code = "STATE_UNAVAILABLE"
    exit_code = AgentError.exit_code


class NotEnrolled(AgentError):
    """The agent has no certificate yet."""

    code = "NOT_ENROLLED"
    exit_code = 3


class WrongCoordinator(AgentError):
    """Something answered that is not the coordinator whose key was pinned at enrolment. The agent stops."""

    code = "WRONG_COORDINATOR"
    exit_code = 4


class UpgradeNeeded(AgentError):
    """The relay speaks no protocol version this agent speaks."""

    code = "UPGRADE_NEEDED"
    exit_code = 5


class NoPolicy(AgentError):
    """No signed policy is in force, or it does not name the relay: the agent does not start."""

    code = "NO_POLICY"
    exit_code = 6


class RelayUnreachable(AgentError):
    """The network or the relay is down; everything waits in the outbox and is retried."""

    code = "RELAY_UNREACHABLE"


class RelayRefused(AgentError):
    """The relay answered no, with its own code and sentence."""

    code = "RELAY_REFUSED"
    # Of all codes of flows/relay/refusals.py only these say that the same bytes can never be taken. Clock, quota,
    # a full disk, a nonce that a proxy repeated, a hospital that is being admitted again: all these pass.
    FINAL = frozenset({"MALFORMED", "TOO_LARGE", "SLOT_TAKEN", "WRONG_RECIPIENT"})

    def __init__(self, status: int, relay_code: str, message: str) -> None:
        super().__init__(f"the relay refused ({relay_code}): {message}")
        self.status, self.relay_code = status, relay_code

    @property
    def is_final(self) -> bool:
        """Whether asking again with the same bytes can only give the same answer."""
        return self.relay_code in self.FINAL


class WorkFailed(AgentError):
    """The child could not do the work. `code` may leave the hospital, the text never does."""

    code = "WORK_FAILED"

    def __init__(self, code: str, detail: str, *, retryable: bool = False) -> None:
        super().__init__(detail)
        self.code, self.retryable = code, retryable


class WorkCancelled(AgentError):
    """The work was stopped because it is no longer wanted."""

    code = "CANCELLED"


class StoredFileLost(AgentError):
    """A file that the journal tells of is not on the disk, or not as it was written."""

    code = "INTERNAL"


class ContractNotMet(AgentError):
    """The hospital's data does not meet the plan's label or data contract: approval is not offered."""

    code = "CONTRACT_NOT_MET"


class EgressRefused(AgentError):
    """Something tried to leave that the gate does not know. A defect; nothing left."""

    code = "EGRESS_REFUSED"


def disk_code(why: OSError) -> str:
    """The releasable code of a disk that failed us."""
    return "DISK_FULL" if why.errno in {errno.ENOSPC, errno.EDQUOT} else "INTERNAL"
