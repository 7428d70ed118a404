"""What a steward reads, whatever others have written into it."""

from typing import Any

import pytest

from boundary.messages import PlanProposed
from boundary.plan import study_id
from silo_agent.budget import terms_of
from silo_agent.daemon import CONTACT, TROUBLES
from silo_agent.releases import reserve
from silo_agent.steward import dossier, lines

HOSTILE = "<script>alert(1)</script>{{ 7*7 }}'\"&"
INVISIBLE = "\u202e\x1b[2J"  # no plan has these (boundary.fields); other text may


def test_the_overview_says_what_there_is_to_do(waiting: Any, steward: Any) -> None:
    waiting.journal.set_fact(CONTACT, b"2026-07-01T08:00:00Z")
    page = steward.get("/")
    assert "ct-contrast@1 scanned Read it, then approve or decline" in page.text
    assert "last contact 2026-07-01T08:00:00Z" in page.text
    assert "Nothing has left." in page.text
    assert "silo-agent withdraw" in page.text


def test_trouble_is_said_first(site: Any, steward: Any) -> None:
    site.journal.set_fact(f"trouble {TROUBLES[0]}", b"RELAY_UNREACHABLE")
    page = steward.get("/")
    assert page.text.index("RELAY_UNREACHABLE") < page.text.index("To do")


def test_a_plan_is_shown_in_the_words_of_the_terminal(waiting: Any, steward: Any) -> None:
    page = steward.get(f"/plans/{waiting.study}")
    kept = waiting.journal.plan(waiting.study)
    said = lines(dossier(waiting.journal, waiting.folder, kept, waiting.now))
    assert len(said) > 12
    for heading, text in said:
        assert f"{heading} {text}" in page.text


def test_the_intake_is_shown_as_bars_and_the_same_numbers_as_text(waiting: Any, steward: Any) -> None:
    page = steward.get(f"/plans/{waiting.study}")
    assert "files found: 431; meant for a study: 339; used: 320; to train on: 240 (60 patients)" in page.text
    assert "LABEL_MISSING 14 yes No row of the label table matches" in page.text
    assert page.html.count("<svg ") == 2


def test_problems_of_our_data_are_said(site: Any, steward: Any, with_report: Any) -> None:
    site.propose()
    site.scanned("class '1' has no patient")
    with_report(site, problems=["class '1' has 0 usable images, the plan asks for 5"])
    page = steward.get(f"/plans/{site.study}")
    assert "class '1' has 0 usable images, the plan asks for 5" in page.text
    assert "Approve and sign" not in page.text
    assert "After the label table, the policy or a file of weights was changed. Check again" in page.text


def test_the_difference_to_the_last_approved_plan_is_shown(site: Any, steward: Any, another_plan: Any) -> None:
    site.approve()
    study = another_plan(site, training__rounds=7)
    page = steward.get(f"/plans/{study}")
    assert "Against ct-contrast@1." in page.text
    assert '<code class="gone">- &#34;rounds&#34;: 3' in page.html.replace("  ", " ")
    assert '<code class="new">+ &#34;rounds&#34;: 7' in page.html.replace("  ", " ")


def test_the_cost_here_is_drawn_against_the_caps(make_site: Any, private: Any, serve_site: Any, client_of: Any) -> None:
    site = make_site(most_patients=100, changes=private())
    site.approve()
    terms = terms_of(site.plan, site.permission().dataset(site.plan))
    assert terms is not None
    reserve(site.journal, terms, site.collection(), 1, site.now)
    client = client_of(serve_site(site))
    spent = f"{site.journal.ledger.balance('everybody', site.study, terms.caps).study.epsilon:.2f}"
    assert float(spent) > 0
    assert f"spent by this study: {spent} of 8; all rounds of the plan: {terms.epsilon:.2f} of 8" in (
        client.get(f"/plans/{site.study}").text
    )
    budget = client.get("/budget")
    assert f"ct-contrast@1: {spent} of 8" in budget.text
    assert f"everybody: {spent} of 16" in budget.text
    assert f"ct-contrast@1 {spent} 8.00 0 1" in budget.text  # none trained, one lost so far


def test_text_of_strangers_shows_what_it_is(site: Any, steward: Any, make_plan_for: Any) -> None:
    purpose = dict.fromkeys(("title", "statement", "legal_basis", "ethics_reference"), HOSTILE)
    plan = make_plan_for(site.cards, purpose=purpose | {"expires": "2030-01-01"})
    study = study_id(plan)
    site.hear(PlanProposed(study=study, plan=plan))
    page = steward.get(f"/plans/{study}")
    assert "<script" not in page.html
    assert page.html.count("&lt;script&gt;alert(1)&lt;/script&gt;{{ 7*7 }}&#39;&#34;&amp;") == 4


def test_a_reason_that_was_hostile_is_shown_as_text(waiting: Any, steward: Any, approval_of: Any) -> None:
    path = f"/plans/{waiting.study}"
    steward.post(f"{path}/decline", approval_of(steward.get(path), no=HOSTILE + INVISIBLE))
    page = steward.get(path)
    assert "<script" not in page.html
    assert not set(INVISIBLE[:2]) & set(page.html)
    assert "{{ 7*7 }}&#39;&#34;&amp;\\u202e\\x1b[2J" in page.html


def test_what_the_relay_said_of_a_message_shows_what_it_is(site: Any, steward: Any) -> None:
    site.approve()
    site.journal.settle(site.parcel("plan-approved"), accepted=False, verdict=HOSTILE + INVISIBLE)
    page = steward.get("/rounds")
    assert "<script" not in page.html
    assert "{{ 7*7 }}&#39;&#34;&amp;\\u202e\\x1b[2J" in page.html


def test_what_left_is_told_with_bytes_and_digests(site: Any, steward: Any) -> None:
    site.approve()
    site.masked()
    page = steward.get("/rounds")
    parcel = site.parcel("masked-vector")
    assert parcel.blob_digest[:19] in page.text
    assert f'title="{parcel.blob_digest}"' in page.html
    assert f"{parcel.blob_size:,}" in page.text
    assert "plan-approved/" in page.text
    assert "1 train masked" in page.text


def test_the_trail_is_paged_with_the_newest_last(site: Any, steward: Any, another_plan: Any) -> None:
    while site.journal.trail_size < 60:
        another_plan(site, name=f"plan-{site.journal.trail_size}")
    last = steward.get("/trail")
    assert "Page 2 of 2" in last.text
    assert '<th scope="row" class="number">60</th>' in last.html
    assert '<th scope="row" class="number">50</th>' not in last.html
    first = steward.get("/trail?page=1")
    assert '<th scope="row" class="number">1</th>' in first.html
    assert '<th scope="row" class="number">50</th>' in first.html


CHANGES = {
    "another entry": "trail SET leaf = CAST(replace(CAST(leaf AS TEXT), 'ct-', 'mr-') AS BLOB)",
    "an entry that is no bytes": "trail SET leaf = 'text'",
    "a tree without its leaves": "tree SET level = 9 WHERE level = 0",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_verify_button_says_whether_the_log_is_what_was_written(change: str, waiting: Any, steward: Any) -> None:
    form = {"token": steward.get("/trail").token}
    assert "2 entries, root" in steward.post("/trail/verify", form).text
    waiting.journal._db.execute(f"UPDATE {change}")
    page = steward.post("/trail/verify", form)
    assert "BROKEN: " in page.text
    assert 'class="problem"' in page.html


@pytest.mark.parametrize("entry", ["'text'", "x'00'"])
def test_an_entry_that_cannot_be_read_does_not_hide_the_others(
    entry: str, waiting: Any, steward: Any, another_plan: Any
) -> None:
    another_plan(waiting)
    waiting.journal._db.execute(f"UPDATE trail SET leaf = {entry} WHERE sequence = 2")  # noqa: S608 - our own
    page = steward.get("/trail")
    assert "cannot be read: verify the log" in page.text
    assert page.text.count("plan-received") == 1


# --- errors ------------------------------------------------------------------------------------------
MISTAKES = {
    "an unknown address": ("/etc/passwd", 404, "follow the links from there"),
    "an unknown plan": ("/plans/nothing-00000000", 404, "There is no such plan"),
    "a page behind the trail's end": ("/trail?page=99", 404, "There is no such page of the trail"),
    "a page that is no number": ("/trail?page=-1", 400, "Use the links below the trail"),
    "a page with a very long number": (f"/trail?page={'9' * 100}", 400, "Use the links below the trail"),
    "a query that cannot be read": ("/trail?page=%ff", 400, "cannot be read"),
    "a sentence that is none of ours": ("/?done=you-have-won", 404, "no such page"),
    "a logout by a link": ("/logout", 405, "own links and buttons"),
    "a decision by a link": ("/trail/verify", 405, "own links and buttons"),
}


@pytest.mark.parametrize(("path", "status", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_a_page_with_its_fix(path: str, status: int, says: str, waiting: Any, steward: Any) -> None:
    page = steward.get(path)
    assert page.status == status
    assert says in page.text
    assert "To the overview" in page.text


def test_a_broken_agent_toml_is_a_page_with_its_fix(waiting: Any, steward: Any) -> None:
    (waiting.root / "agent.toml").write_text("version = 1\nsite = [")
    page = steward.get("/")
    assert page.status == 409
    assert "agent.toml cannot be read" in page.text


def test_a_journal_that_is_none_is_a_page_with_its_fix(waiting: Any, steward: Any) -> None:
    waiting.journal.close()
    for name in ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"):
        (waiting.root / name).unlink(missing_ok=True)
    (waiting.root / "journal.sqlite").write_bytes(b"not a database" * 1000)
    page = steward.get("/")
    assert page.status == 409
    assert "never delete it" in page.text


def test_a_defect_is_a_page_and_its_text_goes_nowhere(
    waiting: Any, steward: Any, caplog: pytest.LogCaptureFixture, with_report: Any
) -> None:  # fmt: skip
    with_report(waiting, refused={"LOCALIZER": "the patient's name"})
    page = steward.get(f"/plans/{waiting.study}")
    assert page.status == 500
    assert "The console has a defect" in page.text
    assert "patient's name" not in page.html + caplog.text
    assert "a defect: TypeError at" in caplog.text or "a defect: ValueError at" in caplog.text
    assert steward.get("/").status == 200


def test_no_page_names_a_path_of_the_archive_or_a_file_of_a_patient(waiting: Any, steward: Any) -> None:
    (waiting.folder.cache / waiting.study / "refused.csv").write_text("path,code\n/data/MUELLER^ANNA.dcm,NO_PIXELS\n")
    for path in ("/", "/plans", f"/plans/{waiting.study}", "/budget", "/rounds", "/incidents", "/trail"):
        page = steward.get(path)
        assert "MUELLER" not in page.html
        assert "labels.csv" not in page.html


def test_pages_load_nothing_from_elsewhere_and_no_script(waiting: Any, steward: Any) -> None:
    for path in ("/", "/plans", f"/plans/{waiting.study}", "/budget", "/rounds", "/incidents", "/trail", "/login"):
        html = steward.get(path).html
        assert "<script" not in html
        assert "style=" not in html
        assert " on" not in html.replace(" on ", "").replace(" one", "").replace(" only", "").partition("<main")[0]
        assert "http://" not in html
        assert "https://" not in html
