"""What reading an archive over the network may cost: bytes, results, seconds, and patience."""

from dataclasses import dataclass

from silo_agent.intake.encoding import Limits


@dataclass(frozen=True, slots=True)
class WebLimits:
    """`*_bytes` bound one answer while it streams, `*_seconds` all of an exchange with its second tries.

    `pauses` lie between the tries of one exchange, `patience` between looking whether an archive that fell silent is
    back; both in seconds. So many studies in a row as `failing_studies` without one good file end the reading.
    """

    max_instance_bytes: int = Limits().max_file_bytes
    max_search_bytes: int = (
        16 * 1024 * 1024
    )  # a page has less than 1 MB; as JSON it takes up to 25 times that in memory
    page: int = 200  # results a search; some archives refuse to be asked for more
    max_results: int = 1_000_000  # studies, series of a study, instances of a series, and instances in all
    connect_seconds: float = 10.0
    read_seconds: float = 30.0  # without a byte
    search_seconds: float = 120.0
    instance_seconds: float = 300.0  # an archive may have to load it from tape
    pauses: tuple[float, ...] = (1.0, 5.0)
    patience: tuple[float, ...] = (10.0, 30.0, 60.0, 120.0, 180.0)
    failing_studies: int = 5
