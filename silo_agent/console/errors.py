"""Why the console says no: a page with a status, what happened, and what to do about it."""


class Declined(Exception):
    """A request that changed nothing. `fix` is a sentence for the person in front of the page.

    `status` is of RFC 9110, or 429 of RFC 6585. `headers` go with the page.
    """

    def __init__(self, status: int, title: str, fix: str, *headers: tuple[str, str]) -> None:
        super().__init__(f"{status} {title}")
        self.status, self.title, self.fix, self.headers = status, title, fix, headers


def not_found(what: str = "page") -> Declined:
    return Declined(404, f"There is no such {what}", "Go back to the overview and follow the links from there.")


def out_of_date(what: str) -> Declined:
    """What the person saw is not what there is now."""
    return Declined(409, f"{what} changed while you were reading", "Nothing was decided. Read the page again first.")
