"""Orthanc, a real archive, in a folder of its own."""

import base64
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

ORTHANC, PLUGIN = Path("/usr/sbin/Orthanc"), Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
MISSING = "Orthanc and its DICOMweb plugin are not installed: run infra/install-test-servers.sh"
_START_SECONDS = 30


def is_installed() -> bool:
    return ORTHANC.exists() and PLUGIN.exists()


@dataclass
class Orthanc:
    """One server in a folder of its own. It listens on all interfaces and answers this machine only.

    Orthanc 1.10 cannot be told to listen on one address; with RemoteAccessAllowed off it turns others down.
    """

    folder: Path
    users: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        settings = {
            "Name": "tests", "StorageDirectory": str(self.folder / "db"), "IndexDirectory": str(self.folder / "db"),
            "HttpPort": self.port, "RemoteAccessAllowed": False, "DicomServerEnabled": False,
            "MaximumStorageCacheSize": 0, "AuthenticationEnabled": bool(self.users), "RegisteredUsers": self.users,
            "Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }  # fmt: skip
        (self.folder / "orthanc.json").write_text(json.dumps(settings), "utf-8")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def start(self) -> None:
        if self.process is not None:
            return
        with (self.folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen([ORTHANC, self.folder / "orthanc.json"], stdout=log, stderr=log)
        end = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"Orthanc does not answer: {(self.folder / 'orthanc.log').read_text('utf-8')}")
            time.sleep(0.05)

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)

    def upload(self, data: bytes, login: str = "") -> None:
        self._ask("/instances", data, login)

    def _answers(self) -> bool:
        try:
            self._ask("/system")
        except urllib.error.HTTPError as why:
            why.close()
            return why.code == 401
        except OSError:
            return False
        return True

    def _ask(self, path: str, data: bytes | None = None, login: str = "") -> None:
        headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - http to ourselves
            answer.read()
