"""The privacy audit as a person runs it: progress, a table, a verdict in a sentence, a figure."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from boundary.errors import InvalidPlan
from flows.privacy_audit import Audit, Effort, Finding, audit, draw, log_to_mlflow, read_images
from flows.privacy_cost import private_plan


def run_audit(
    path: Path, images: Path | None, effort: tuple[int, int, int, int], mlflow: str | None, figure: Path | None
) -> int:
    """The exit code: 0 when the promise holds against an attack that works, else 1."""
    console = Console()
    plan, privacy = private_plan(path.read_text("utf-8"))
    if plan.task != "classification":
        raise InvalidPlan("task: the audit gives patients a wrong class, so it is of plans for classification")
    if plan.model.pretrained is not None:
        raise InvalidPlan("model.pretrained: the audit begins with the seed's draw: audit the plan without this table")
    data = read_images(images, plan.preprocessing, effort[1])
    with Progress(console=console, transient=True) as bars:
        tasks = {}

        def on_model(name: str, done: int, of: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(f"training: {name}", total=of)
            bars.update(tasks[name], completed=done)

        # to personalise is one more round of the same steps and noise
        training = plan.training.model_copy(update={"rounds": plan.rounds_in_all})
        done = audit(plan.model, len(plan.labels.classes), training, privacy, data, Effort(*effort), on_model)
    console.print(_table(done))
    console.print(verdict(done), highlight=False)
    if figure is not None:
        draw(done).savefig(figure)
        console.print(f"figure   {figure}", highlight=False)
    if mlflow is not None:
        console.print(f"MLflow   {log_to_mlflow(mlflow, plan.label, done)}", highlight=False, soft_wrap=True)
    return 0 if done.holds and done.can_tell else 1


def verdict(done: Audit) -> str:
    """One sentence that does not say more than was shown."""
    if not done.can_tell:
        return (
            "NOTHING SHOWN: the attack does not work without noise either. Give it more --epochs, --models or "
            "--canaries."
        )
    found, promised = done.private.epsilon, done.terms.epsilon
    if not done.holds:
        return f"BROKEN: the attack shows epsilon above {found:.2f}, the plan promises {promised:.2f}. Do not run it."
    return (
        f"HOLDS against this attack: it shows epsilon above {found:.2f}, the plan promises at most {promised:.2f}; "
        f"without noise the same attack shows {done.without.epsilon:.2f}. A better attack may show more."
    )


def _table(done: Audit) -> Table:
    table = Table(title="Membership inference on one hospital's model", title_justify="left")
    for head in ("training", "area under the curve", "right of guesses", "epsilon, at least (95 %)", "promised"):
        table.add_column(head, justify="left" if head == "training" else "right")
    for finding, promised in ((done.without, "nothing"), (done.private, f"{done.terms.epsilon:.2f}")):
        table.add_row(*_row(finding), promised)
    return table


def _row(finding: Finding) -> tuple[str, str, str, str]:
    guesses = finding.guesses
    return finding.name, f"{finding.area:.3f}", f"{guesses.right} of {guesses.made}", f"{finding.epsilon:.2f}"
