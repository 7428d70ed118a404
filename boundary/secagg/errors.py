"""Why a hospital or the coordinator breaks off a masked sum. Each ends the attempt, never the round."""

from boundary.errors import PeerFault


class BadShares(PeerFault):
    """Shares that do not lie on one polynomial of a 32-byte secret, are not those promised, or are too few."""

    code = "BAD_SHARES"


class SplitView(PeerFault):
    """Two hospitals were told different things about the same sum."""

    code = "SPLIT_VIEW"


class KeyReused(PeerFault):
    """A key that appears twice, or was seen in another attempt."""

    code = "KEY_REUSED"


class ResultSpent(PeerFault):
    """A result that was already unmasked in one sum, wanted for a sum over other hospitals: their difference tells."""

    code = "RESULT_SPENT"
