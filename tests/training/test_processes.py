"""Two processes take the step that one would take on the same images."""

from pathlib import Path
from typing import Any

import torch
from several import together
from torch import nn

from planish.core.threat import Linf
from planish.data.batches import Augmentation, Batches
from planish.data.images import Images
from planish.methods import Method
from planish.models.small_cnn import small_cnn
from planish.registry import components, make
from planish.training.collapse import OFF, Guard
from planish.training.loop import fit, start
from planish.training.processes import ALONE, Group
from planish.training.settings import Settings

THREAT, CLASSES, COUNT = Linf(0.05), 4, 7
STEP = Settings(
    epochs=1, batch_size=COUNT, learning_rate=1.0, schedule="constant", momentum=0.0, weight_decay=0.0, save_minutes=9
)
METHODS = sorted(components("methods"))


def images(count: int = COUNT) -> Images:
    generator = torch.Generator().manual_seed(7)
    x = torch.randint(256, (count, 1, 8, 8), generator=generator).to(torch.uint8)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return Images(x, labels, ("a", "b", "c", "d"), "made", torch.arange(count) * 5 + 100)


def network(*, frozen: bool) -> nn.Module:
    """A small network whose batch norms have seen something; frozen: they rest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_cnn(classes=CLASSES, channels=1, width=4, activation="softplus")
        with torch.no_grad():
            model(torch.rand(64, 1, 8, 8))
    for module in model.modules():
        module.training = not (frozen and isinstance(module, nn.BatchNorm2d))
    return model


def trained(
    group: Group, method: Method, settings: Settings, *, frozen: bool = True, count: int = COUNT, guard: Guard = OFF
) -> dict[str, Any]:
    model = network(frozen=frozen)
    before = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    state = start(model, settings, group)
    batches = Batches(images(count), settings.batch_size, Augmentation(crop=1, flip=True), share=group.share)
    records = list(fit(state, method, THREAT, batches, settings, seed=3, guard=guard, group=group))
    after = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    return {
        "moved": before - after,
        "buffers": torch.cat([buffer.flatten().float() for buffer in model.buffers()]),
        "memory": dict(state.memory),
        "metrics": [record.metrics for record in records],
        "probes": state.monitor.probes,
    }


def every(group: Group) -> dict[str, Any]:
    return {name: trained(group, make("methods", name, {}), STEP) for name in METHODS}


if __name__ == "__main__":
    import tempfile

    one = every(ALONE)
    two = together(every, 2, Path(tempfile.mkdtemp()))
    for name in METHODS:
        a, b, c = one[name], two[0][name], two[1][name]
        print(
            name,
            (a["moved"] - b["moved"]).abs().max().item(),
            a["moved"].abs().max().item(),
            torch.equal(b["moved"], c["moved"]),
            {k: (a["memory"][k].float() - b["memory"][k].float()).abs().max().item() for k in a["memory"]},
            max(abs(v - b["metrics"][0][k]) for k, v in a["metrics"][0].items()),
        )
