"""A file of pretrained weights as a plan names it, pinned by its hash. Reading one is in `boundary.pretrained_file`.

Plans are read where NumPy is not: in the hospital's daemon.
"""

from typing import Annotated

from pydantic import Field

from boundary.low_rank import Patterns, fits, is_adapter
from boundary.names import Frozen

MAX_PRETRAINED_BYTES = 2**31


class Pretrained(Frozen):
    """`file` is a name in each party's own folder of weights, `sha256` the digest of its bytes, as `sha256sum` has it.

    A parameter of the network is the file's tensor `strip` + its name. Those that fit `leave_out`, a head for other
    classes say, and adapters begin as the plan's seed gives; every other one has to be in the file.
    """

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    strip: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9_./-]*$")] = ""
    leave_out: Patterns = ()

    def takes(self, parameter: str) -> bool:
        """Whether this parameter begins with the file's."""
        return not is_adapter(parameter) and not fits(parameter, self.leave_out)
