"""Arguments and options that several commands take."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def _names(*packages: str) -> Callable[[str], list[str]]:
    """Return what completes a name, or the last of several with commas, from the names of these packages."""

    def complete(incomplete: str) -> list[str]:
        from planish.registry import listed

        before, comma, begun = incomplete.rpartition(",")
        names = sorted(name for package in packages for name in listed(package))
        return [f"{before}{comma}{name}" for name in names if name.startswith(begun)]

    return complete


def _settings(incomplete: str) -> list[str]:
    """Return what completes model.name=... and method.name=..."""
    key, equals, begun = incomplete.partition("=")
    packages = {"model.name": "models", "method.name": "methods"}
    if not equals:
        return [f"{name}=" for name in packages if name.startswith(key)]
    return [f"{key}={name}" for name in _names(packages[key])(begun)] if key in packages else []


def _packages(incomplete: str) -> list[str]:
    from planish.registry import PACKAGES

    return [name for name in PACKAGES if name.startswith(incomplete)]


def _models(incomplete: str) -> list[str]:
    """Return run folders in runs/ and its folders, and files and folders that begin so."""
    found = (path.parent for depth in ("*", "*/*") for path in Path("runs").glob(f"{depth}/model.safetensors"))
    runs = {str(folder) for folder in found if str(folder).startswith(incomplete)}
    return sorted({*runs, *_paths(incomplete)})


def _data(incomplete: str) -> list[str]:
    """Return data sets by name, and files and folders that begin so."""
    return [*_names("data")(incomplete), *_paths(incomplete)]


def _paths(incomplete: str) -> list[str]:
    place = Path(incomplete)
    folder, begun = (place, "") if incomplete.endswith("/") else (place.parent, place.name)
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(f"{path}/" if path.is_dir() else str(path) for path in found if path.name.startswith(begun))


Model = Annotated[
    str,
    Argument(
        help="Run folder, file.py:function, module:function, timm:, torchvision:, hf:, robustbench:, hf://, .onnx.",
        autocompletion=_models,
    ),
]
Method = Annotated[
    str | None,
    Option(help="Training method: planish-at by default, or seat, llr-2, ...", autocompletion=_names("methods")),
]
Set = Annotated[
    list[str] | None,
    Option("--set", help="Override, e.g. settings.epochs=10. Repeatable.", autocompletion=_settings),
]
Listed = Annotated[str, Argument(help="methods, attacks, suites, models, data or checks.", autocompletion=_packages)]
Data = Annotated[str, Option(help="digits, cifar10:PATH, or a path.", autocompletion=_data)]
TrainingData = Annotated[
    str | None, Option("--data", help="Training data: digits, cifar10:PATH, or a path.", autocompletion=_data)
]
Radius = Annotated[str, Option(help="In pixels of [0, 1], e.g. 8/255.")]
Norm = Annotated[str, Option(help="Linf, L2, L1 or L0.")]
MaybeRadius = Annotated[
    str | None, Option("--radius", help="In pixels of [0, 1], e.g. 8/255; or FILE.npy, one for each image or pixel.")
]
Threats = Annotated[
    list[str] | None,
    Option("--threat", help="Norm and radius, e.g. L2:0.5, in place of both. Repeatable: robust is what is in each."),
]
BuiltBy = Annotated[str | None, Option(help="Function of yours that built a run's model; it is imported and called.")]
BatchSize = Annotated[
    int | None, Option(help="At most so many images through the model at a time: less memory, the same outcome.")
]
Limit = Annotated[int | None, Option(help="Only the first so many test images.")]
Size = Annotated[
    int | None, Option(help="Pixels that test images are brought to; what the run was trained for by default.")
]
Classes = Annotated[
    str | None,
    Option(help="How the model numbers its classes: a file with a name a line, or {name: number} as .json or .toml."),
]
Out = Annotated[
    Path | None,
    Option("--out", "-o", help="Folder to write into; else one of its own in runs/, numbered where that is taken."),
]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace what planish wrote into --out.")]
DryRun = Annotated[bool, Option("--dry-run", help="Check everything and print the whole configuration; write nothing.")]
Csv = Annotated[
    Path | None,
    Option(
        "--csv", dir_okay=False, help="Write the printed tables as CSV too: to FILE, and more to FILE-2, FILE-3, ..."
    ),
]
Device = Annotated[str, Option(help="cpu, cuda or cuda:N; auto takes a GPU if there is one.")]
Attacks = Annotated[
    str,
    Option(help="Names with commas; see: planish list attacks.", autocompletion=_names("attacks", "suites")),
]
DistanceAttacks = Annotated[
    str,
    Option(
        "--attacks", help="Distance attacks with commas; see: planish list attacks.", autocompletion=_names("attacks")
    ),
]
Share = Annotated[
    str | None, Option("--shard", help="Only this part of the test images, such as 3/16; planish merge joins all.")
]
After = Annotated[
    str | None, Option(help="With --shard: folder of merged shards, to do a part of what a suite has left.")
]
Against = Annotated[
    Path | None, Option(help="An earlier evaluation's folder or .npz: tell the difference, image by image.")
]
Workers = Annotated[
    str | None, Option(help="Judge by so many processes, a shard each; auto: one a GPU, else one a core.")
]
Precision = Annotated[str, Option(help="Of the attacks' search: float32 or bf16. Verdicts are float32.")]
KeepImages = Annotated[bool, Option("--keep-images", help="Save the adversarial images too, for planish verify.")]
Targets = Annotated[str | None, Option(help="For targeted: a file with a class for each image, a line each, or .npy.")]
EightBit = Annotated[bool, Option("--eight-bit", help="Adversarial images that a file of 8 bits holds; kept as PNGs.")]
Draws = Annotated[int, Option("--eot", help="Of a random model: draws averaged in a step, and that judge an image.")]
Seed = Annotated[int, Option(help="Seed of everything random.")]
Json = Annotated[bool, Option("--json", help="Print one JSON document on stdout, nothing else.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress bars.")]
Resume = Annotated[
    bool, Option("--resume", help="Go on with what --out holds; without it, with the newest folder of the same work.")
]

RENAMED = {
    "radius": "eps epsilon",
    "set threat.radius=8/255": "radius eps epsilon",
    "set threat.norm=L2": "norm threat",
    "set settings.learning_rate=0.1": "lr learning-rate",
    "set settings.batch_size=128": "batch-size bs",
    "set settings.optimizer=adamw": "optimizer optim opt",
    "set settings.weight_decay=0.0005": "weight-decay wd",
    "set data.validation=1000": "validation val-size",
    "set model.name=preact-resnet-18": "model arch architecture network",
    "batch-size": "bs chunk",
    "attacks": "attack",
    "data": "dataset data-dir test-data",
    "limit": "n n-examples num-examples n-images images",
    "weights": "pretrained checkpoint init",
    "epochs": "n-epochs num-epochs",
    "out": "output output-dir outdir save-dir",
    "overwrite": "force",
    "resume": "continue",
    "device": "gpu cuda",
    "norm": "threat p",
    "dry-run": "dryrun",
    "all": "verbose",
}
"""Options by what others call them; "set ..." is what `planish train` has in place of an option."""


def meant(wrong: str, known: set[str]) -> str:
    """Return the option of a command that another program's option stands for, "" = none. known: what it has."""
    for own, others in RENAMED.items():
        if wrong.lstrip("-") in others.split() and f"--{own.split()[0]}" in known:
            return f"--{own}"
    return ""
