"""`wardround`: what the study coordinator types."""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from boundary.errors import BoundaryError
from flows.coordinator import DEFAULT_HOME, SettingsError
from flows.weights import weights_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Training rounds across hospitals.

    [bold]See it work[/bold]: wardround demo.
    [bold]Set up[/bold]: init → relay and serve (keep both running) → invite and admit each hospital.
    [bold]Each study[/bold]: plan check → plan publish → hospitals approve → run it from the Prefect UI → compare.
    [bold]For reviewers[/bold]: evidence → verify.""",
)
plan_app = typer.Typer(no_args_is_help=True, help="Check and publish study plans.")
roster_app = typer.Typer(no_args_is_help=True, help="Who is in the federation.")
app.add_typer(plan_app, name="plan")
app.add_typer(roster_app, name="roster")
app.add_typer(weights_app, name="weights")
incidents_app = typer.Typer(help="Logs that are not what they were: look into one, close it.")
app.add_typer(incidents_app, name="incidents")
officer_app = typer.Typer(no_args_is_help=True, help="The compliance officer's key and signature.")
app.add_typer(officer_app, name="officer")

HomeOption = Annotated[
    Path, typer.Option("--home", envvar="WARDROUND_HOME", help="The coordinator's home folder (mode 0700).")
]
PlanFile = Annotated[Path, typer.Argument(help="A study.toml.", exists=True, dir_okay=False)]


def main() -> None:
    """Entry point of `wardround`: one line and an exit code for every error we know."""
    os.umask(0o077)
    try:
        app()
    except (SettingsError, BoundaryError, LookupError, ValueError, RuntimeError) as why:
        sys.stderr.write(f"wardround: {why}\n")
        raise SystemExit(1) from why


@app.command()
def init(
    url: Annotated[str, typer.Option(help="What hospitals dial, for example https://relay.study.example:8443")],
    name: Annotated[list[str] | None, typer.Option(help="DNS name or address in the certificate; repeatable.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8443,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make the coordinator's keys, its certificate authority, and a coordinator.toml to look through."""
    from flows.coordinator import create, starting_settings

    names = name or [url.removeprefix("https://").rpartition(":")[0] or url.removeprefix("https://")]
    coordinator = create(home, starting_settings(home.resolve(), url, host, port, names))
    typer.echo(f"made {home}")
    typer.echo(f"coordinator fingerprint: {coordinator.key.public.fingerprint}")
    typer.echo("next: `wardround relay` and `wardround serve`, then `wardround invite HOSPITAL`")


@app.command()
def relay(home: HomeOption = DEFAULT_HOME) -> None:
    """Run the relay, the only address hospitals reach. Keep it running (systemd, container)."""
    from flows.coordinator import load
    from flows.relay.server import CannotServe, RelaySettings, serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stdout)
    coordinator = load(home)
    keys, settings = coordinator.keys, coordinator.settings
    try:
        serve(
            RelaySettings(
                database=settings.store,
                blobs=settings.blobs,
                scratch=home / "scratch",
                host=settings.relay.host,
                port=settings.relay.port,
                certificate=keys / "relay.crt",
                private_key=keys / "relay.key",
                client_ca=keys / "ca.pem",
            )
        )
    except CannotServe as why:
        raise SettingsError(str(why)) from why


@app.command()
def serve(home: HomeOption = DEFAULT_HOME) -> None:
    """Offer `federated-training` in the Prefect UI and run what is asked for there. Keep it running."""
    from flows.coordinator import load
    from flows.deployment import environment
    from flows.deployment import serve as serve_deployment

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Prefect is asked for work each second: 13 MB a day of that
    coordinator = load(home)
    if coordinator.settings.prefect_url is None:
        raise SettingsError(f"set prefect_url in {home / 'coordinator.toml'}")
    os.environ.update(environment(coordinator.settings.prefect_url) | {"WARDROUND_HOME": str(home)})
    asyncio.run(serve_deployment(coordinator))


@app.command()
def invite(
    hospital: Annotated[str, typer.Argument(help="Short name of the hospital, as it will appear everywhere.")],
    out: Annotated[Path, typer.Option(help="Where to write the invitation. Send it by a safe way.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Write a one-time invitation for a hospital."""
    from flows.admission import invite as write_invitation
    from flows.coordinator import load

    coordinator = load(home)
    write_invitation(coordinator, hospital, out)
    typer.echo(f"wrote {out}: it opens the door once and for seven days; treat it as a password")
    typer.echo(f"read aloud when {hospital} calls: {coordinator.key.public.fingerprint}")


@app.command()
def admit(
    hospital: Annotated[str, typer.Argument(help="The hospital that asks to be admitted.")],
    fingerprint: Annotated[str, typer.Option(help="What its people read aloud over the telephone.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Admit a hospital after its fingerprint was read aloud; signs a new roster."""
    from flows.admission import admit as admit_hospital
    from flows.coordinator import load

    version = admit_hospital(load(home), hospital, fingerprint)
    typer.echo(f"{hospital} is on roster version {version}")


@app.command()
def status(home: HomeOption = DEFAULT_HOME) -> None:
    """Show hospitals (last sign of life, certificates) and studies (approvals, rounds)."""
    from flows.coordinator import load
    from flows.overview import print_overview

    print_overview(load(home))


@roster_app.command("renew")
def roster_renew(
    without: Annotated[str | None, typer.Option(help="A hospital that leaves the federation.")] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Sign the membership anew, before it expires or without a hospital."""
    from flows.admission import renew_roster
    from flows.coordinator import load

    typer.echo(f"roster version {renew_roster(load(home), without)} is in force")


@plan_app.command("check")
def plan_check(plan: PlanFile, home: HomeOption = DEFAULT_HOME) -> None:
    """Parse a plan, pin the hospitals' keys, look at its network, print its digest. Publishes nothing."""
    from boundary.plan import digest_of, study_id
    from flows.coordinator import load
    from flows.publication import check_finished, checked_tensors, pinned

    coordinator = load(home)
    parsed = pinned(coordinator, plan.read_text("utf-8"))
    _, parts = checked_tensors(parsed, coordinator.weights)
    check_finished(coordinator, parsed, parts)
    typer.echo(f"{parsed.label}: study {study_id(parsed)}, {len(parsed.hospitals)} hospitals")
    if not parts.moves_whole:
        typer.echo(
            f"of {parts.whole.size:,} parameters {parts.moving.size:,} move in each round, {parts.home.size:,} are "
            f"trained and stay home, {parts.whole.size - parts.moving.size - parts.home.size:,} are not trained"
        )
    typer.echo(digest_of(parsed))


@plan_app.command("publish")
def plan_publish(plan: PlanFile, home: HomeOption = DEFAULT_HOME) -> None:
    """Publish a plan: build its model, offer it to its hospitals, and to the form in the Prefect UI."""
    from flows.coordinator import load
    from flows.publication import pinned, publish

    coordinator = load(home)
    study = publish(coordinator, pinned(coordinator, plan.read_text("utf-8")))
    typer.echo(f"published {study.label} as study {study.study}, plan digest {study.plan_digest}")
    typer.echo("next: each hospital runs `silo-agent plan show` and `plan approve`; then run it from the Prefect UI")


@plan_app.command("cost")
def plan_cost(plan: Annotated[Path, typer.Argument(help="A study.toml.", exists=True, dir_okay=False)]) -> None:
    """What a plan with a guarantee costs hospitals of different sizes: epsilon from noise, or noise from epsilon."""
    from flows.privacy_cost import cost_table

    for line in cost_table(plan.read_text("utf-8")):
        typer.echo(line)


@plan_app.command("models")
def plan_models(
    name: Annotated[str | None, typer.Argument(help="One of them: list its parameters by name.")] = None,
) -> None:
    """List the models a plan may name; or the parameters of one, which `trained` and `home` in a plan are about."""
    from models.catalogue import describe

    if name is None:
        for entry in describe():
            typer.echo(f"{entry.label:24} {entry.parameters:>12,} parameters  {entry.use}: {entry.summary}")
        return
    for choice, size in parameters_of(name):
        typer.echo(f"{size:>12,}  {choice}")


def parameters_of(name: str) -> list[tuple[str, int]]:
    """(parameter, how many weights) of a network with two classes. Raises `UnknownModel`."""
    from boundary.learning import ModelChoice
    from models.parameters import manifest

    wanted, _, version = name.partition("@")
    choice = ModelChoice(name=wanted, version=int(version or 1))
    return [(spec.name, spec.size) for spec in manifest(choice, 2).tensors]


@plan_app.command("keep")
def plan_keep(
    weights: Annotated[Path, typer.Argument(help="A safetensors file.", exists=True, dir_okay=False)],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Take in a finished model's weights, so that a plan can name them under evaluation.models."""
    from flows.coordinator import load

    typer.echo(load(home).blobs.put_file(weights).digest)


@app.command()
def compare(
    plans: Annotated[list[str], typer.Argument(help="Two studies or more, as NAME@REVISION.")],
    out: Annotated[Path, typer.Option(help="Folder for the report: HTML, Markdown, figure.")] = Path("comparison"),
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Put studies side by side: results with 95 % intervals, traffic, guarantees, what differs in the plans."""
    from flows.comparison.compare import compare as compare_studies
    from flows.comparison.compare import publish
    from flows.coordinator import load
    from flows.mlflow_client import BookUnreachable

    coordinator = load(home)
    report = compare_studies(coordinator, plans)
    report.write(out)
    typer.echo(report.text)
    typer.echo(f"wrote {out / 'comparison.html'}")
    if (url := coordinator.settings.mlflow_url) is not None:
        try:
            typer.echo(f"in MLflow: {publish(report, url)}")
        except BookUnreachable as why:
            typer.echo(f"not in MLflow: {why}; run this again when it is back", err=True)


@app.command()
def evidence(
    plan: Annotated[str, typer.Argument(help="Which study, as NAME@REVISION or by its id.")],
    out: Annotated[Path | None, typer.Option(help="A new folder; without it, one below the home folder.")] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Put together the evidence about a study: all parties' logs, the report, everything that verifies it."""
    from flows.coordinator import load
    from flows.evidence import issue

    issued = issue(load(home), plan, out)
    typer.echo(f"wrote {issued.folder}")
    typer.echo(f"next: wardround verify {issued.folder} --trust keys.toml, with keys that the parties gave you")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle, as `wardround evidence` writes it.")],
    trust: Annotated[Path, typer.Option(help="keys.toml: the parties' keys, from themselves, not from the bundle.")],
    mlflow: Annotated[str | None, typer.Option(help="Compare with what this MLflow server shows.")] = None,
    every_cosignature: Annotated[bool, typer.Option(help="Of very many, also those behind newer ones.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The findings for a program.")] = False,
) -> None:
    """Verify a study's evidence from scratch, offline. Exit code 0: verified, 1: broken, 2: something is missing."""
    from compliance.verify_command import run

    copies = None
    if mlflow is not None:
        from flows.evidence_book import copies_in

        copies = copies_in(mlflow, bundle)
    raise SystemExit(run(bundle, trust, copies=copies, every=every_cosignature, as_json=as_json))


@app.command()
def keys(home: HomeOption = DEFAULT_HOME) -> None:
    """Print the coordinator's line of a reviewer's keys.toml; each hospital adds its own (`silo-agent keys`)."""
    from flows.coordinator import load

    typer.echo(f'version = 1\ncoordinator = "{load(home).key.public.text}"')


@officer_app.command("init")
def officer_init(
    key: Annotated[Path, typer.Argument(help="A new file for the key, on the officer's own machine.")],
    name: Annotated[str, typer.Option(help="The officer's short name.")],
) -> None:
    """Make an officer's key. It stays with the officer; the line it prints goes into coordinator.toml."""
    from flows.officer import make_key

    typer.echo(f'[officers]\n{name} = "{make_key(key)}"')


@officer_app.command("sign")
def officer_sign(
    bundle: Annotated[Path, typer.Argument(help="The bundle that was verified and read.")],
    decision: Annotated[str, typer.Option(help="release or reject")],
    key: Annotated[Path, typer.Option(help="The officer's key file.", exists=True, dir_okay=False)],
) -> None:
    """Sign a decision about the model of exactly this bundle, for the form of the flow `model-release`."""
    from flows.officer import decide, signed

    if decision not in {"release", "reject"}:
        raise typer.BadParameter("release or reject", param_hint="--decision")
    made = decide(bundle, "release" if decision == "release" else "reject")
    typer.echo(f"{made.choice} the model of {made.study} after round {made.round}: {made.model}", err=True)
    typer.echo(signed(made, key))


@incidents_app.callback(invoke_without_command=True)
def incidents(context: typer.Context, home: HomeOption = DEFAULT_HOME) -> None:
    """List the incidents, or close one."""
    from flows.coordinator import load
    from flows.incidents import incident_lines

    if context.invoked_subcommand is None:
        for line in incident_lines(load(home)):
            typer.echo(line)


@incidents_app.command("close")
def incidents_close(
    number: Annotated[int, typer.Argument(help="The incident's number.")],
    decision: Annotated[
        str, typer.Option(help="For the log, as a code: ACCEPTED, RESTORED_BACKUP, HOSPITAL_LEFT, ...")
    ] = "ACCEPTED",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Let rounds go on after somebody has looked into an incident; who did and why belongs in your own records."""
    from flows.coordinator import load
    from flows.incidents import close

    close(load(home), number, decision)
    typer.echo(f"incident {number} is closed: {decision}")


@app.command("audit-privacy")
def audit_privacy(  # noqa: PLR0913, PLR0917 - a command's options
    plan: Annotated[Path, typer.Argument(help="A study.toml with a guarantee per patient.", exists=True)],
    images: Annotated[
        Path | None, typer.Option(help="An .npz with images (n, h, w) and labels (n); without it, phantoms.")
    ] = None,
    models: Annotated[int, typer.Option(min=6, help="Models of each kind. More make a sharper attack.")] = 12,
    patients: Annotated[int, typer.Option(min=40, help="Patients to train on.")] = 120,
    canaries: Annotated[int, typer.Option(min=10, help="Of them with a wrong label, for the attack to find.")] = 50,
    epochs: Annotated[int, typer.Option(min=1, help="Of the training without noise, enough to overfit.")] = 80,
    mlflow: Annotated[str | None, typer.Option(help="Log to this MLflow server, experiment `privacy-audit`.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Write the attacker's curves as an image.")] = None,
) -> None:
    """Attack the plan's training (membership inference) and hold what it finds against what the plan promises.

    Exit code 1: the attack found more than the plan allows, or does not even work without noise.
    """
    from flows.privacy_report import run_audit

    raise SystemExit(run_audit(plan, images, (models, patients, canaries, epochs), mlflow, figure))


@app.command()
def demo(  # noqa: PLR0913, PLR0917 - a command's options
    archive: Annotated[
        Path | None, typer.Option(help="DIR/<hospital>/dicom/** and DIR/<hospital>/labels.csv; without it, phantoms.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How many rounds.")] = 5,
    hospitals: Annotated[int, typer.Option(min=3, max=8, help="How many phantom hospitals.")] = 3,
    workdir: Annotated[Path, typer.Option(help="Where everything of the demo goes. Must not exist yet.")] = Path(
        "workdir"
    ),
    summary: Annotated[Path | None, typer.Option(help="Write the results as JSON.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A study.toml of your own, hospitals by name.")] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            help="Guarantee per patient for the whole study; 0 for none. Default: 8, where "
            "every hospital has 100 patients.",
        ),
    ] = None,
    segmentation: Annotated[
        bool,
        typer.Option(
            "--segmentation",
            help="Outline lesions in CT volumes with masks as DICOM SEG; with --archive: SEG objects in "
            "DIR/<hospital>/dicom or masks.",
        ),
    ] = False,
    keep_running: Annotated[bool, typer.Option("--keep-running", help="Leave the servers up until Ctrl-C.")] = False,
    prefect_port: Annotated[int, typer.Option(help="0 takes 4200 or a free one.")] = 0,
    mlflow_port: Annotated[int, typer.Option(help="0 takes 5000 or a free one.")] = 0,
    relay_port: Annotated[int, typer.Option(help="0 takes 8443 or a free one.")] = 0,
) -> None:
    """Watch a whole federation on this machine: Prefect, MLflow, the relay over TLS, one agent per hospital."""
    from flows.demo.show import Choices, run_demo

    choices = Choices(
        archive=archive, rounds=rounds, hospitals=hospitals, workdir=workdir, summary=summary, plan=plan,
        keep_running=keep_running, ports=(prefect_port, mlflow_port, relay_port), epsilon=epsilon,
        segmentation=segmentation,
    )  # fmt: skip
    raise SystemExit(run_demo(choices))
