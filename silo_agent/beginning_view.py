"""What a plan's network begins with, what is added to it and how it comes down, in the words a steward reads."""

from boundary.plan import StudyPlan


def beginning_lines(plan: StudyPlan) -> list[tuple[str, str]]:
    """(heading, text) pairs; none for a plan that begins with a draw, adapts nothing and comes down as it is."""
    pinned, lora, said = plan.model.pretrained, plan.model.lora, []
    if pinned is not None:
        drawn = f"; those called {' or '.join(pinned.leave_out)} are drawn instead" if pinned.leave_out else ""
        said.append(
            ("What it begins with", f"the weights in {pinned.file} (SHA-256 {pinned.sha256}), a file that we have in "
             f"our own folder of weights{drawn}. What the coordinator sends to begin with is compared with it. Take it "
             "from who publishes it: weights can be made to tell of single images")
        )  # fmt: skip
    if lora is not None:
        said.append(
            ("What is added", f"adapters of rank {lora.rank} (LoRA, strength {lora.scale:g}) in the layers called "
             f"{' or '.join(lora.targets)}, which stay as they are themselves")
        )  # fmt: skip
    if plan.aggregation.downlink == "bfloat16":
        said.append(("How models come", "rounded to 16 bits a weight (bfloat16): half the bytes of each round's model"))
    return said
