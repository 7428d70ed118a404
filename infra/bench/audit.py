"""The privacy audit as rows: what an attack finds of an overfitted model, and of the same plan with its noise.

The images are drawn here, one of each of 120 patients; half of the 50 canaries are in each model's training data. The
figures are of one audit and scatter: the bound is a bound at 95 %, not a measurement of epsilon.
"""

from boundary.guarantee import PatientPrivacy
from boundary.images import Preprocessing
from boundary.learning import ModelChoice, Training
from flows.privacy_audit import Effort, audit, read_images
from infra.bench.rows import Row, Target, at_most

EFFORT = Effort(models=12, patients=120, canaries=50, epochs=80)
PRIVACY = PatientPrivacy(mechanism="patient-dp", epsilon=8.0, patients_per_step=40, steps=4)
TRAINING = Training(rounds=15, optimizer="sgd", learning_rate=0.5, weighting="equal")


def privacy_audit() -> list[Row]:
    model = ModelChoice(name="cnn-small", version=1, initial_seed=7)
    data = read_images(None, Preprocessing(size=(32, 32), intensity="percentiles", low=0, high=100), EFFORT.patients)
    done = audit(model, 2, TRAINING, PRIVACY, data, EFFORT, lambda _name, _done, _of: None)
    promised, without, private = done.terms.epsilon, done.without, done.private
    return [
        Row("members found without noise, overfitted: area under the curve", without.area, "", "guessing", 0.5,
            Target("value", "at least", 0.8)),
        Row("epsilon shown without noise, at least (95 %)", without.epsilon, "", "promised with noise", promised),
        Row(f"members found at epsilon {promised:.3g}: area under the curve", private.area, "", "guessing", 0.5),
        Row(f"epsilon shown at epsilon {promised:.3g}, at least (95 %)", private.epsilon, "", "promised", promised,
            at_most(promised)),
    ]  # fmt: skip
