"""Rating data: found, fetched, checked, read. None of it comes with this project."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from amaml_core import InputError
from bench import cache

MOST_BYTES = 100_000_000  # that a member of an archive may unpack to: the largest is a quarter of it
NOT_RATED = 99  # in Jester's matrix

Table = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Users, items and ratings, a row a rating."""


def _u_data(file: BinaryIO) -> Table:
    import pandas as pd  # here and below: a sixth of a second that no other problem's cells need wait for

    table = pd.read_csv(file, sep="\t", header=None, usecols=[0, 1, 2], dtype=np.int64)
    return table[0].to_numpy(), table[1].to_numpy(), table[2].to_numpy(float)


def _ratings_dat(file: BinaryIO) -> Table:
    import pandas as pd

    table = pd.read_csv(
        file, sep=":", header=None, usecols=[0, 2, 4], dtype=np.int64
    )  # it is "::", of one-letter fields
    return table[0].to_numpy(), table[2].to_numpy(), table[4].to_numpy(float)


def _triples(file: BinaryIO) -> Table:
    with np.load(file, allow_pickle=False) as arrays:
        return arrays["user"].astype(np.int64), arrays["movie"].astype(np.int64), arrays["rating"].astype(float)


def _jester(matrix: np.ndarray) -> Table:
    ratings = matrix[:, 1:]  # the first column is how many the user rated
    user, item = np.nonzero(ratings != NOT_RATED)
    return user + 1, item + 1, ratings[user, item]


def _jester_csv(file: BinaryIO) -> Table:
    import pandas as pd

    return _jester(pd.read_csv(file, header=None).to_numpy(float))


def _jester_xls(file: BinaryIO) -> Table:
    import pandas as pd

    return _jester(pd.read_excel(file, header=None, engine="calamine").to_numpy(float))


@dataclass(frozen=True)
class RatingData:
    """A data set as its publisher gives it away.

    Attributes:
        title: for people.
        folders: names that its folder may have below a directory of data sets; fetched, it goes to the first.
        urls: of the publisher's archive, and of stored copies of the same bytes.
        archive_hash: of that archive.
        readers: what reads a file of this name, in whichever folder or archive it lies.
        archives: names that an archive with such a file in it may have.
        content_hash: SHA-256 of the ratings in one canonical form, whichever file they were read from.
        lowest: of the ratings that are possible.
        highest: likewise.
        terms: on what terms one may use it, and what to cite.
    """

    title: str
    folders: tuple[str, ...]
    urls: tuple[str, ...]
    archive_hash: str
    readers: Mapping[str, Callable[[BinaryIO], Table]]
    archives: tuple[str, ...]
    content_hash: str
    lowest: float
    highest: float
    terms: str


MOVIELENS_TERMS = (
    "for research only: not to be redistributed, nor used commercially, without GroupLens' permission; acknowledge: "
    "F. M. Harper and J. A. Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015"
)

DATA: dict[str, RatingData] = {
    "jester": RatingData(
        title="Jester-1",
        folders=("jester-1",),
        urls=(
            "https://eigentaste.berkeley.edu/dataset/jester_dataset_1_1.zip",
            "https://web.archive.org/web/20250409222630/https://eigentaste.berkeley.edu/dataset/archive/jester_dataset_1_1.zip",
        ),
        archive_hash="sha256:cb7841756ded125b15f3d95c9f8241224065e96354c132a46ae4214deeab7615",
        readers={"jester-data-1.csv": _jester_csv, "jester-data-1.xls": _jester_xls},
        archives=("jester-data-1.zip", "jester_dataset_1_1.zip"),
        content_hash="35156e1612ec396eef044f91da95b7d0b26a63b5edf6d86a9dce03e53f020abd",
        lowest=-10.0,
        highest=10.0,
        terms="free for research; acknowledge: K. Goldberg, T. Roeder, D. Gupta and C. Perkins, Eigentaste: A Constant "
        "Time Collaborative Filtering Algorithm, Information Retrieval 4(2), 2001",
    ),
    "movielens_100k": RatingData(
        title="MovieLens-100K",
        folders=("movielens-100k", "ml-100k"),
        urls=("https://files.grouplens.org/datasets/movielens/ml-100k.zip",),
        archive_hash="md5:0e33842e24a9c977be4e0107933c0723",
        readers={"u.data": _u_data},
        archives=("ml-100k.zip",),
        content_hash="af2b43ec4de8184714cf08b1c087a2e36bbc2496f0f45d28ce221dbd154a97bc",
        lowest=1.0,
        highest=5.0,
        terms=MOVIELENS_TERMS,
    ),
    "movielens_1m": RatingData(
        title="MovieLens-1M",
        folders=("movielens-1m", "ml-1m"),
        urls=("https://files.grouplens.org/datasets/movielens/ml-1m.zip",),
        archive_hash="md5:c4d9eecfca2ab87c1945afe126590906",
        readers={"ratings.dat": _ratings_dat, "ml1m_ratings.npz": _triples},
        archives=("ml-1m.zip",),
        content_hash="81d2a703f5a21e25407007879b824838706e160630791b21dc0315330d251848",
        lowest=1.0,
        highest=5.0,
        terms=MOVIELENS_TERMS,
    ),
}


def find(name: str) -> Path | None:
    """The file or archive of a data set, in ``AMAML_BENCH_DATA`` or in the cache; None where there is none.

    Raises:
        InputError: ``AMAML_BENCH_DATA`` names no directory.
    """
    data = DATA[name]
    given = os.environ.get("AMAML_BENCH_DATA")
    if given and not Path(given).is_dir():
        raise InputError(f"AMAML_BENCH_DATA names {given}, which is no directory; correct it, or unset it.")
    for root in ([Path(given)] if given else []) + [cache.folder("data")]:
        for folder in (*(root / name for name in data.folders), root):
            for file in (*data.readers, *data.archives):
                if (folder / file).is_file():
                    return folder / file
    return None


def fetch(name: str) -> Path:
    """The file of a data set, from its publisher where it is not at hand.

    Raises:
        InputError: it cannot be fetched, or is not what was published; nothing is kept then.
    """
    return find(name) or _fetch(DATA[name].urls, DATA[name], cache.folder("data"))


_refusals: dict[tuple[str, ...], InputError] = {}  # a server that does not answer is waited for once


def _fetch(urls: tuple[str, ...], data: RatingData, folder: Path) -> Path:
    import pooch  # which only a download needs

    if urls in _refusals:
        raise _refusals[urls]
    pooch.get_logger().setLevel("WARNING")
    told = []
    for url in urls:
        try:
            kept = pooch.retrieve(
                url, data.archive_hash, fname=data.archives[-1], path=folder / data.folders[0], progressbar=False
            )
        except Exception as error:  # of the network, in whichever of requests' and urllib3's many ways
            told.append(f"{url} ({type(error).__name__}: {str(error).splitlines()[0][:160]})")
        else:
            return Path(kept)
    _refusals[urls] = InputError(
        f"{data.title} cannot be fetched from {', nor from '.join(told)}; download it yourself and name its directory "
        "in AMAML_BENCH_DATA."
    )
    raise _refusals[urls]


def load(name: str) -> Table:
    """A data set's users (numbered from 1), items (from 1) and ratings, sorted by user and item.

    Raises:
        InputError: it is not at hand, or not what was published.
    """
    path = find(name)
    if path is None:
        raise InputError(
            f"{DATA[name].title} is not at hand; run `amaml-bench fetch {name}`, or name the directory that holds it "
            "in AMAML_BENCH_DATA."
        )
    return _read(name, path, path.stat().st_mtime_ns)


@functools.cache
def _read(name: str, path: Path, modified: int) -> Table:
    data = DATA[name]
    try:
        user, item, rating = _open(data, path)
        order = np.lexsort((item, user))
        table = user[order], item[order], rating[order]
        found = content_hash(table)
    except Exception as error:  # whatever a broken file may make a parser raise
        raise InputError(f"{path} cannot be read as {data.title} ({error}); {_again(name)}.") from error
    if found != data.content_hash:
        raise InputError(f"{path} does not hold {data.title} as it was published; {_again(name)}.")
    return table


def _again(name: str) -> str:
    return f"delete it and run `amaml-bench fetch {name}`"


def _open(data: RatingData, path: Path) -> Table:
    if path.name in data.readers:
        with path.open("rb") as file:
            return data.readers[path.name](file)
    with zipfile.ZipFile(path) as archive:  # nothing is unpacked to the disk, so that no name in it can lead anywhere
        for member in archive.infolist():
            reader = data.readers.get(PurePosixPath(member.filename).name)
            if reader is not None and not member.filename.startswith("__MACOSX"):
                if member.file_size > MOST_BYTES:
                    raise ValueError(f"{member.filename} would unpack to {member.file_size:,} bytes")
                return reader(io.BytesIO(archive.read(member)))
    raise ValueError(f"it holds none of {', '.join(data.readers)}")


def content_hash(table: Table) -> str:
    """SHA-256 over all ratings, sorted: users and items as 32-bit and hundredths of ratings as 16-bit integers."""
    digest = hashlib.sha256()
    user, item, rating = table
    for values, kind in ((user, "<i4"), (item, "<i4"), (np.rint(100 * rating), "<i2")):
        digest.update(values.astype(kind).tobytes())
    return digest.hexdigest()


def show_terms(name: str, say: Callable[[str], None]) -> None:
    """Say on what terms a data set may be used, the first time that this user meets it."""
    data, seen = DATA[name], cache.folder("data") / f".{name}-terms-shown"
    if not seen.exists():
        say(f"{data.title}: {data.terms}.")
        with suppress(OSError):  # where nothing can be kept they are shown again
            seen.parent.mkdir(parents=True, exist_ok=True)
            seen.touch()
