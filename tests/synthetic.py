"""Records as runs would write them, for the tests of results."""

from results.cells import checkpoint_stem, stem
from results.declarations import TABLES
from results.record import SCHEMA, Record, cell_key


def declared_recipe(checkpoint):
    """The recipe that a table wants of the checkpoint, or one of our own where none does."""
    usual = [table for table in TABLES.values() if table.tier != "ablations"]
    rows = [(row, table.columns[0]) for table in usual for row in table.rows if row.recipe]
    return {checkpoint_stem(*pair): pair[0].recipe for pair in rows}.get(stem(checkpoint), "0123456789ab")


def made_sha256(checkpoint, recipe, epoch=60):
    """What stands for the digest of a checkpoint."""
    return f"sha of {checkpoint} {recipe} {epoch}"


def probe(
    checkpoint="deepcluster-alexnet32-digits-s0",
    value=50.0,
    *,
    task="probes.linear",
    version=1,
    protocol="small@1",
    settings=None,
    metrics=None,
    dataset="digits",
    images="split",
    fingerprint="f" * 8,
    recipe=None,
    epoch=60,
    sha256=None,
    precision="fp32",
):
    """A probe's record; the pretraining seed is the last digit of the checkpoint's name."""
    settings = {"layer": "conv1", "seed": 0, **(settings or {})}
    recipe = recipe or declared_recipe(checkpoint)
    sha256 = sha256 or made_sha256(checkpoint, recipe, epoch)
    return Record(
        schema=SCHEMA,
        key=cell_key(task, version, settings, sha256, fingerprint),
        task=task,
        version=version,
        protocol=protocol,
        settings=settings,
        checkpoint={
            "name": checkpoint,
            "sha256": sha256,
            "method": checkpoint.partition("-")[0],
            "backbone": {"name": "alexnet32", "channels": 3, "sobel": False},
            "recipe": recipe,
            "seed": int(checkpoint[-1]) if checkpoint[-1].isdigit() else None,
            "epoch": epoch,
            "source": "trained here",
            "dataset": "digits",
        },
        dataset={"name": dataset, "protocol": images, "fingerprint": fingerprint, "splits": {"train": 9, "test": 3}},
        metrics=metrics or {"top1": value, "top5": 99.0},
        details={},
        environment={"precision": precision},
        command=f"python -m {task}",
        started="2026-01-01T00:00:00Z",
        seconds=1.5,
    )


def pretraining(checkpoint="deepcluster-alexnet32-digits-s0", *, version=1, fingerprint="f" * 8):
    """The record of the run that made a checkpoint."""
    method = checkpoint.partition("-")[0]
    settings = {"seed": int(checkpoint[-1]), "backbone": "alexnet32"}
    return Record(
        schema=SCHEMA,
        key=cell_key(f"pretrain.{method}", version, settings, None, fingerprint),
        task=f"pretrain.{method}",
        version=version,
        protocol=f"{method}@{version}",
        settings=settings,
        checkpoint=None,
        dataset={"name": "digits", "protocol": "split", "fingerprint": fingerprint, "splits": {"train": 9}},
        metrics={"loss": 1.25},
        details={"recipe": "0123456789ab", "checkpoint": {"name": checkpoint, "sha256": "s"}, "history": []},
        environment={},
        command=f"python -m pretrain.{method}",
        started="2026-01-01T00:00:00Z",
        seconds=60,
    )


def run_of(training, seed, metrics=None, history=(), **changed):
    """The record of a declared training's run, which made the checkpoint that `probe` has by default."""
    settings = {**training.settings, "seed": seed}
    sobel = ["sobel"] if settings["sobel"] else []
    name = "-".join([training.method, settings["backbone"], *sobel, training.dataset, f"s{seed}"])
    fields = {
        "task": training.task,
        "version": training.version,
        "protocol": f"{training.method}@{training.version}",
        "settings": settings,
        "checkpoint": None,
        "dataset": {
            "name": training.dataset,
            "protocol": settings["images"],
            "fingerprint": training.fingerprint,
            "splits": {"train": 9},
        },
        "metrics": {"nmi_arithmetic": 0.5, "ami": 0.4, "nmi_previous": 0.6, **(metrics or {})},
        "details": {
            "recipe": training.recipe,
            "checkpoint": {"name": name, "sha256": made_sha256(name, training.recipe)},
            "history": list(history),
        },
        **changed,
    }
    settings, fingerprint = fields["settings"], fields["dataset"]["fingerprint"]
    return Record(
        schema=SCHEMA,
        key=cell_key(fields["task"], fields["version"], settings, None, fingerprint),
        environment={},
        command=f"python -m {training.task}",
        started="2026-01-01T00:00:00Z",
        seconds=60,
        **fields,
    )
