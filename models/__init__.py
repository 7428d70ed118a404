"""The networks a plan may name, and what is done with them: initialise, preprocess, train, measure."""

import getpass
import os

try:
    getpass.getuser()
except (KeyError, OSError):  # the second from Python 3.13 on
    # MONAI asks for it when it is imported; a container's user may be a number that is in no passwd file (Docker's are)
    os.environ["LOGNAME"] = str(os.getuid())
