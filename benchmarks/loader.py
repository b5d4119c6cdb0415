"""How many images a second the loader delivers beside what a model takes: the loader must not be what is waited for.

    python benchmarks/loader.py [--data imagenet:PATH] [--workers 1,4,8] [--model resnet] [--device cuda]

Streamed as in training: random parts at --size, flipped. Without --data, JPEGs of 500x375 and about 100 kB, as large as
ImageNet's, are made for it. The model's time is a forward and a backward of cross entropy, nothing loaded. Times are
of the wall clock: the loader's work is done in other processes.
"""

import inspect
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timing import Row, parser, save, show

from planish.core.errors import BadInput
from planish.data.batches import Augmentation
from planish.data.images import Images
from planish.data.listing import Listing
from planish.data.source import find
from planish.data.stream import Streamed
from planish.models import build
from planish.registry import components

MODELS = ("resnet", "preact-resnet-18")
"""The default is the first that is registered."""


def made_up(folder: Path, count: int, height: int, width: int) -> str:
    """Write JPEGs of four classes, waves with noise; return the folder's name as data."""
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + generator.normal(
            0, 8, (height, width, 3)
        )
        place = folder / f"class{number % 4}"
        place.mkdir(exist_ok=True)
        Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(place / f"{number:05}.jpg", quality=92)
    return f"folder:{folder}"


def listed(spec: str, limit: int) -> Listing:
    """Return the listing of streamable data. Raises BadInput for other data."""
    found = find(spec, "train", limit)
    if isinstance(found, Images):
        raise BadInput(f"'{spec}' is no set of image files")
    return found


def seconds(call: Callable[[], object], rounds: int, device: str) -> float:
    """Return the median time of a call on the wall clock; it is called once before."""
    taken = []
    for _ in range(1 + rounds):
        began = time.perf_counter()
        call()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken[1:]))


def loading(options: Namespace, listing: Listing, workers: int) -> float:
    """Return images per second of whole epochs; the processes are running by then."""
    batches = Streamed(
        listing,
        options.batch,
        (3, options.size, options.size),
        Augmentation(flip=True),
        (options.size,) * (1 + options.rounds),
        options.device,
        workers,
    )
    epochs = iter(range(1 + options.rounds))
    taken = seconds(lambda: [None for _ in batches.epoch(next(epochs), 0)], options.rounds, options.device)
    return float(len(batches) * options.batch / taken)


def computing(options: Namespace) -> float:
    """Return images per second of the model's forward and backward."""
    torch.manual_seed(0)
    wanted = inspect.signature(components("models")[options.model]).parameters
    width = {"width": options.width} if "width" in wanted and options.model != "resnet" else {}
    model = build(options.model, classes=10, channels=3, **width)
    model = model.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(options.batch, 3, options.size, options.size)
    x = x.to(options.device, memory_format=torch.channels_last)
    labels = torch.arange(options.batch, device=options.device) % 10

    def step() -> None:
        model.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=options.bf16):
            loss = F.cross_entropy(model(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]

    return float(options.batch / seconds(step, options.rounds, options.device))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    choice = parser("Images per second of the loader and of a model.", "loader/loader")
    choice.add_argument("--data", help="image files, as planish names them; made up if not given")
    choice.add_argument("--images", type=int, default=256)
    choice.add_argument("--size", type=int, default=224)
    choice.add_argument("--workers", default="0,1,2", help="numbers of processes, with commas")
    choice.add_argument("--model", default=next(name for name in MODELS if name in components("models")))
    choice.add_argument("--bf16", action="store_true", help="the model's forward in bfloat16")
    options = choice.parse_args(arguments)
    if options.tiny:
        options.images, options.size, options.batch, options.width, options.model = 8, 16, 4, 2, MODELS[-1]
    with TemporaryDirectory() as place:
        height, width = (40, 48) if options.tiny else (375, 500)
        spec = options.data or made_up(Path(place), options.images, height, width)
        listing = listed(spec, options.images)
        speeds = {workers: loading(options, listing, workers) for workers in map(int, options.workers.split(","))}
    model = computing(options)
    rows: list[Row] = [
        {"what": "loader", "workers": workers, "images_per_second": speed, "ratio": speed / model}
        for workers, speed in speeds.items()
    ]
    rows.append({"what": options.model, "workers": None, "images_per_second": model, "ratio": 1.0})
    save(options, rows, {"threads": torch.get_num_threads()})
    show(
        "Images per second, model = 1",
        rows,
        {
            "what": lambda row: row["what"],
            "workers": lambda row: "" if row["workers"] is None else str(row["workers"]),
            "images/s": lambda row: f"{row['images_per_second']:.0f}",
            "ratio": lambda row: f"{row['ratio']:.2f}",
        },
    )


if __name__ == "__main__":
    main()
