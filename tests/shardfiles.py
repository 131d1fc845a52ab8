"""Tar shards as webdataset writes them, for the tests of data sets."""

import io
import tarfile

from pictures import write_image


def picture_bytes(folder, ending="jpg", seed=0, size=(12, 10)):
    """A small picture's file, as bytes."""
    return write_image(folder / f"picture.{ending}", size=size, seed=seed).read_bytes()


def write_shard(path, members, form=tarfile.USTAR_FORMAT):
    """A tar file of (name, bytes), in that order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder, count=3, images=4, stem="data", classes=2, start=0):
    """`count` shards of labelled pictures, each picture another; their names."""
    names = []
    for shard in range(count):
        members = []
        for image in range(images):
            number = start + shard * images + image
            members.append((f"{number:06}.jpg", picture_bytes(folder, seed=number, size=(12 + number % 5, 10))))
            members.append((f"{number:06}.cls", str(number % classes).encode()))
        names.append(write_shard(folder / f"{stem}-{shard:02}.tar", members).name)
    (folder / "picture.jpg").unlink()
    return names
