"""A user number that is in no passwd file, as Docker's `--user 65532` is."""

import os
import subprocess
import sys

NAMES = {"LOGNAME", "USER", "LNAME", "USERNAME"}  # where `getpass.getuser` looks first
IN_NO_PASSWD_FILE = """
import pwd
def unknown(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")
pwd.getpwuid = unknown
import models.networks
"""


def test_networks_are_there_for_a_user_without_a_name() -> None:
    nameless = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", IN_NO_PASSWD_FILE], env=nameless, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
