"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

Model = Annotated[
    str, Argument(help="Run folder, package.module:function, file.py:function, timm:NAME, hf:NAME or FILE.onnx.")
]
Method = Annotated[str | None, Option(help="Training method: planish-at by default, or seat, llr-2, ...")]
Listed = Annotated[str, Argument(help="methods, attacks, suites, models, data or checks.")]
Data = Annotated[str, Option(help="digits, cifar10:PATH, or a path.")]
Radius = Annotated[str, Option(help="In pixels of [0, 1], e.g. 8/255.")]
Norm = Annotated[str, Option(help="Linf or L2.")]
BuiltBy = Annotated[str | None, Option(help="Function of yours that built a run's model; it is imported and called.")]
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
    Path | None, Option("--csv", help="Write the printed tables as CSV too: to FILE, and more to FILE-2, FILE-3, ...")
]
Device = Annotated[str, Option(help="cpu, cuda or cuda:N; auto takes a GPU if there is one.")]
Attacks = Annotated[str, Option(help="Names with commas; see: planish list attacks.")]
Precision = Annotated[str, Option(help="Of the attacks' search: float32 or bf16. Verdicts are float32.")]
KeepImages = Annotated[bool, Option("--keep-images", help="Save the adversarial images too, for planish verify.")]
Draws = Annotated[int, Option("--eot", help="Of a random model: draws averaged in a step, and that judge an image.")]
Seed = Annotated[int, Option(help="Seed of everything random.")]
Json = Annotated[bool, Option("--json", help="Print one JSON document on stdout, nothing else.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress bars.")]
Resume = Annotated[
    bool, Option("--resume", help="Go on with what --out holds; without it, with the newest folder of the same work.")
]
