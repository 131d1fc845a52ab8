"""A cluster for each image: the clusters of a checkpoint trained here, given to any images, as a csv.

python -m pretrain.assign

python -m pretrain.assign --checkpoint NAME --images PATH --out clusters.csv

The columns are image, cluster and distance. image: the file's path below PATH, byte for byte as the disk has it (UTF-8
or not), in quotes where it has a comma, a quote or a line break in it; of images in memory, the number. cluster: the
number, from 0 up. distance: Euclidean, to the centre of that cluster, where the checkpoint's method compares them:
DeepCluster's whitened descriptors of length 1, MMDC's outputs of length 1.

The csv is written whole or not at all, on stdout too.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, ClassVar

import numpy as np
import torch
import tyro

from results.errors import UserError, did_you_mean
from results.files import replacing
from zoo import device as devices
from zoo import processes
from zoo.backbones import EMBEDDING
from zoo.checkpoint import DEFAULT, RUNS, resolve
from zoo.clustering.assigning import Clusters, read_clusters
from zoo.datasets import COLLECTIONS, DATASETS, SPELLED, find
from zoo.datasets.collection import Split
from zoo.datasets.dataset import MERGED, Dataset, Missing, spaced
from zoo.datasets.folder import ENDINGS, Folder, below
from zoo.datasets.images import FileImages, Images
from zoo.datasets.verify import exclude
from zoo.evaluation import Evaluation
from zoo.options import Flag, check_least
from zoo.run import guarded, shown_path

HEADER = b"image,cluster,distance\n"
QUOTED = frozenset(',"\r\n')  # csv.writer leaves a \r as it is, which csv.reader then takes for the end of a line


@dataclass(frozen=True)
class Options:
    """Which images, whose clusters, and where the csv goes."""

    least: ClassVar[dict[str, float]] = {"threads": 0, "workers": 0, "batch": 1, "limit": 1}

    # whose clusters: a name that `python -m pretrain` lists, a file, or `reference`
    checkpoint: str = DEFAULT
    # a folder, of which every image in any depth is taken; or a data set: a name that `python -m zoo.datasets` lists,
    # folder:PATH, list:FILE or shards:PATTERN
    images: str = "digits"
    split: str = MERGED  # of a data set that has several; merged: one after the other, but for unlabelled images
    out: Path | None = None  # the csv to write; else stdout
    exclude: Path | None = None  # a list of image files to leave out, as `python -m zoo.datasets --verify` writes it
    data_dir: Path | None = None  # where the data sets lie; else $ZOO_DATA, then data/ in the clone
    runs: Path | None = None  # where checkpoints made here are kept; else runs/ in the clone
    device: str = "auto"  # auto, cpu, cuda, cuda:1 …
    threads: int = 0  # 0: all processors
    workers: int = 2  # threads that decode image files
    batch: int = 256  # images at once
    limit: int | None = None  # only this many of the images, evenly spaced
    quiet: Flag = False  # no progress on stderr


class AnyFolder(Folder):
    """Every image below a folder, whatever its layout: no classes, one split."""

    source = f"a folder with images in any depth ({' '.join(ENDINGS)}), or a data set: {', '.join(DATASETS)}, {SPELLED}"

    def _look(self) -> dict[str, Split]:
        """See Collection._look."""
        if not self.location.is_dir():
            stands = "is no folder" if self.location.exists() else f"is not here{did_you_mean(self.called, DATASETS)}"
            raise Missing(f"{self.called} {stands}", str(self.location.absolute()), self.source)
        paths = list(below(self.location, self.location))
        if not paths:
            raise UserError(f"there are no images in {self.called}", str(self.location.absolute()), self.source)
        return {"images": Split(paths, None)}

    @property
    def called(self) -> str:
        """The folder as it was typed."""
        return str(self.location)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    return guarded(lambda: assign(parse(arguments)), left="nothing was written")


def parse(arguments: Sequence[str] | None) -> Options:
    """The options of a command line."""
    return tyro.cli(Options, prog="python -m pretrain.assign", description=__doc__, args=arguments)


def assign(options: Options) -> None:
    """Write the csv of all that the options say, and what it holds on stdout unless that is the csv."""
    check_least(asdict(options), options.least)
    if processes.started() > 1:
        happened = f"torchrun started {processes.started()} processes, each of which would do all the work"
        raise UserError(happened, fix="python -m pretrain.assign, which is one process")
    devices.prepare(options.threads or None)
    device = devices.pick(options.device)
    checkpoint = resolve(options.checkpoint, options.runs or RUNS)
    clusters = read_clusters(checkpoint, device)
    dataset = open_dataset(options)
    images = dataset.open(options.split)
    backbone = checkpoint.build_backbone().to(device).to(memory_format=torch.channels_last)
    bench = Evaluation(
        checkpoint, checkpoint.sha256, dataset, backbone, device, workers=options.workers, quiet=options.quiet
    )
    order = np.arange(len(images)) if options.limit is None else spaced(len(images), options.limit)
    sizes = np.zeros(len(clusters.centres), dtype=np.int64)
    with writing(options.out) as file:
        file.write(HEADER)
        for ids, chosen, distances in assigned(bench, images, order, options.batch, clusters):
            file.write(rows(names(images, ids), chosen, distances))
            sizes += np.bincount(chosen, minlength=len(sizes))
    if options.out is not None:
        print(f"{summary(sizes)}\n{'written to':13} {shown_path(options.out)}")


def open_dataset(options: Options) -> Dataset:
    """The images that the options name, looked at. UserError if they are not as they should be."""
    dataset = find_images(options.images, options.data_dir)
    if options.exclude is not None:
        exclude(dataset, options.exclude)
    dataset.preflight()
    return dataset


def find_images(spelled: str, data_dir: Path | None) -> Dataset:
    """The data set that is called or spelled so; any other word is a folder's path (./digits, where both are)."""
    if not spelled or spelled in DATASETS or spelled.partition(":")[0] in COLLECTIONS:
        return find(spelled, data_dir)
    return AnyFolder(Path(spelled).expanduser())


def assigned(
    bench: Evaluation, images: Images, order: np.ndarray, batch: int, clusters: Clusters
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(ids, clusters, distances), (B,) each, of the images in `order`."""
    for ids, pixels in bench.batches(images, order, bench.view(images), batch, "clusters"):
        yield ids, *clusters.assign(bench.maps(pixels, [EMBEDDING])[EMBEDDING])


def names(images: Images, ids: np.ndarray) -> list[str]:
    """What the csv calls the images: files by their path below the folder (of a shard, and key), others by number."""
    if isinstance(images, FileImages):
        return [name.decode("utf-8", "surrogateescape") for name in images.subset(ids).names.tolist()]
    return [str(number) for number in ids]


def rows(called: Sequence[str], clusters: np.ndarray, distances: np.ndarray) -> bytes:
    """Lines of the csv; names that are not UTF-8 are the bytes that they are."""
    columns = zip(called, clusters.tolist(), distances.tolist())
    lines = "".join(f"{quoted(name)},{cluster},{distance:.6g}\n" for name, cluster, distance in columns)
    return lines.encode("utf-8", "surrogateescape")


def quoted(name: str) -> str:
    """The name as a csv's field (RFC 4180)."""
    return name if QUOTED.isdisjoint(name) else '"' + name.replace('"', '""') + '"'


@contextmanager
def writing(out: Path | None) -> Iterator[IO[bytes]]:
    """A temporary file to write to, which becomes `out`, or goes to stdout, only if the block ends well."""
    if out is None:
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            shutil.copyfileobj(file, sys.stdout.buffer)
        return
    if out.is_dir():
        raise UserError(f"{out} is a folder, not a file", fix=f"--out {out / 'clusters.csv'}")
    with replacing(out) as temporary, temporary.open("wb") as file:
        yield file


def summary(sizes: np.ndarray) -> str:
    """What clusters of these sizes (k,) are, for a person."""
    largest, total = sizes.argmax(), sizes.sum()
    lines = {
        "images": f"{total:,}",
        "clusters": f"{np.count_nonzero(sizes):,} of {len(sizes):,} have images",
        "largest": f"cluster {largest}, {sizes[largest]:,} images ({100 * sizes[largest] / total:.1f} %)",
    }
    return "\n".join(f"{name:13} {value}" for name, value in lines.items())


if __name__ == "__main__":
    sys.exit(main())
