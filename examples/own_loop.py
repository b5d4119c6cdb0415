"""Your own loop round planish's training: validate after every epoch, keep the best weights, stop early.

    python examples/own_loop.py

`fit` is a generator, so the body of the `for` is where callbacks would go elsewhere. Images are held out of the
training set for the choice: the test set is for one number at the end, never for choosing.
"""

from copy import deepcopy

import torch

from planish import Batch, Linf, Settings, evaluate, fit
from planish.attacks.gradient import PGD, MultiTargeted
from planish.data import load
from planish.data.batches import Batches
from planish.methods.adversarial import RSFGSM
from planish.models.small_cnn import small_cnn
from planish.training.loop import start

THREAT = Linf(0.1)
SETTINGS = Settings(epochs=12, batch_size=64, learning_rate=0.1)
PATIENCE = 2  # epochs without a better held-out robust accuracy before we stop


def main() -> None:
    """Train, choose by held-out robust accuracy, and evaluate the choice once on the test set."""
    images, held_out = load("digits", "train").split(200, seed=0)
    torch.manual_seed(0)
    state = start(small_cnn(classes=10, channels=1, width=16, activation="gelu"), SETTINGS)
    best, best_epoch, weights = -1.0, 0, state.deployed.state_dict()

    for record in fit(state, RSFGSM(), THREAT, Batches(images, 64), SETTINGS, seed=0):
        robust = robust_accuracy(state.deployed, held_out.as_batch())
        print(f"epoch {record.epoch}: loss {record.metrics['loss']:.3f}, held-out robust accuracy {robust:.1%}")
        if robust > best:
            best, best_epoch, weights = robust, record.epoch, deepcopy(state.deployed.state_dict())
        if record.epoch - best_epoch >= PATIENCE:
            break

    model = state.deployed
    model.load_state_dict(weights)
    test = load("digits", "test", limit=200).as_batch()
    *_, last = evaluate(model, test, THREAT, {"multi-targeted-10-1": MultiTargeted(10, 1)})
    print(f"epoch {best_epoch} on the test set: {last.evaluation.robust_accuracy().value:.1%}")


def robust_accuracy(model: torch.nn.Module, images: Batch) -> float:
    """Return the accuracy under PGD-10 from one start: too weak to report, good enough to choose by."""
    *_, last = evaluate(model, images, THREAT, {"pgd-10-1": PGD(10, 1)})
    return last.evaluation.robust_accuracy().value


if __name__ == "__main__":
    main()
