import http.server
import io
import threading
import zipfile
from dataclasses import replace
from hashlib import md5

import numpy as np
import pytest
import xlwt
from stand_ins import ratings as synthetic_ratings

from amaml_core import InputError
from bench.problems import data


@pytest.fixture
def known(monkeypatch, tmp_path):
    """Makes a small table the content of a data set, and returns the folder where its files are looked for."""

    def make(name, table):
        monkeypatch.setitem(data.DATA, name, replace(data.DATA[name], content_hash=data.content_hash(table)))
        monkeypatch.setenv("AMAML_BENCH_DATA", str(tmp_path))
        folder = tmp_path / data.DATA[name].folders[0]
        folder.mkdir()
        return folder

    return make


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tsv(table, between="\t"):
    return "\n".join(between.join(map(str, (u, i, int(r), 880_000_000))) for u, i, r in zip(*table, strict=True))


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def jester_matrix(users=6, jokes=9):
    rng = np.random.default_rng(0)
    ratings = rng.uniform(-10, 10, (users, jokes)).round(2)
    ratings[rng.random((users, jokes)) < 0.3] = data.NOT_RATED
    return np.hstack([(ratings != data.NOT_RATED).sum(1, keepdims=True), ratings])


def jester_table(matrix):
    """By hand, a cell at a time."""
    rows = [
        (u + 1, i, matrix[u, i])
        for u in range(len(matrix))
        for i in range(1, matrix.shape[1])
        if matrix[u, i] != data.NOT_RATED
    ]
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def xls(matrix):
    book = xlwt.Workbook()
    sheet = book.add_sheet("jester-data-1-new")
    for row, values in enumerate(matrix.tolist()):
        for column, value in enumerate(values):
            sheet.write(row, column, value)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def csv(matrix):
    return "\n".join(",".join(map(str, row)) for row in matrix.tolist()).encode()


def npz(table):
    buffer = io.BytesIO()
    user, item, rating = table
    np.savez(buffer, user=user.astype("i2"), movie=item.astype("i2"), rating=rating.astype("i1"))
    return buffer.getvalue()


TABLE = synthetic_ratings(12, 25)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("movielens_100k", "u.data", tsv(TABLE).encode()),
        ("movielens_100k", "ml-100k.zip", zipped({"ml-100k/README": "hello", "ml-100k/u.data": tsv(TABLE)})),
        ("movielens_1m", "ratings.dat", tsv(TABLE, "::").encode()),
        ("movielens_1m", "ml-1m.zip", zipped({"ml-1m/ratings.dat": tsv(TABLE, "::")})),
        ("movielens_1m", "ml1m_ratings.npz", npz(TABLE)),
    ],
)
def test_every_form_of_movielens_gives_the_same_ratings(name, file, content, known):
    (known(name, TABLE) / file).write_bytes(content)
    assert equal(data.load(name), TABLE)


@pytest.mark.parametrize("member", ["jester-data-1.csv", "jester-data-1.xls"])
def test_both_forms_of_jester_give_the_same_ratings(member, known):
    matrix = jester_matrix()
    content = xls(matrix) if member.endswith("xls") else csv(matrix)
    folder = known("jester", jester_table(matrix))
    (folder / "jester-data-1.zip").write_bytes(zipped({"__MACOSX/" + member: b"junk", member: content}))
    assert equal(data.load("jester"), jester_table(matrix))


def test_the_order_of_the_rows_does_not_matter(known):
    shuffled = np.random.default_rng(0).permutation(tsv(TABLE).splitlines())
    (known("movielens_100k", TABLE) / "u.data").write_text("\n".join(shuffled))
    assert equal(data.load("movielens_100k"), TABLE)


def test_a_folder_may_have_the_publishers_name_or_be_the_directory_itself(known, tmp_path):
    known("movielens_100k", TABLE).rmdir()
    for place in (tmp_path / "ml-100k" / "u.data", tmp_path / "u.data"):
        place.parent.mkdir(exist_ok=True)
        place.write_text(tsv(TABLE))
        assert data.find("movielens_100k") == place
        place.unlink()


def without_the_last(text):
    return text.rpartition("\n")[0].encode()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("u.data", b""),
        ("u.data", b"not a table at all\n"),
        ("u.data", without_the_last(tsv(TABLE))),
        ("u.data", tsv(TABLE).replace("\t5\t", "\t4\t", 1).encode()),
        ("ml-100k.zip", b"PK\x03\x04 torn"),
        ("ml-100k.zip", zipped({"ml-100k/u.data": tsv(TABLE)})[:-30]),
        ("ml-100k.zip", zipped({"ml-100k/u1.base": tsv(TABLE)})),
    ],
)
def test_corrupt_data_are_refused_with_the_files_name(file, content, known):
    (known("movielens_100k", TABLE) / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"{file} .*`amaml-bench fetch movielens_100k`"):
        data.load("movielens_100k")


def test_an_archive_that_would_unpack_to_too_much_is_refused(known, monkeypatch):
    monkeypatch.setattr(data, "MOST_BYTES", 1000)
    (known("movielens_100k", TABLE) / "ml-100k.zip").write_bytes(zipped({"u.data": tsv(TABLE)}))
    with pytest.raises(InputError, match="would unpack to"):
        data.load("movielens_100k")


def test_a_member_that_points_elsewhere_is_written_nowhere(known, tmp_path):
    folder = known("movielens_100k", TABLE)
    (folder / "ml-100k.zip").write_bytes(zipped({"../../u.data": tsv(TABLE)}))
    before = sorted(tmp_path.parent.rglob("*"))
    assert equal(data.load("movielens_100k"), TABLE)
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_file_that_has_changed_is_read_again(known):
    file = known("movielens_100k", TABLE) / "u.data"
    file.write_text(tsv(TABLE))
    data.load("movielens_100k")
    file.write_text("other")
    with pytest.raises(InputError):
        data.load("movielens_100k")


def test_what_is_not_at_hand_is_told_with_the_command_that_gets_it():
    with pytest.raises(InputError, match="amaml-bench fetch jester"):
        data.load("jester")


@pytest.fixture
def publisher(monkeypatch, tmp_path):
    """A web server with MovieLens-100K's archive; returns what it was asked for."""
    archive, asked = zipped({"ml-100k/u.data": tsv(TABLE)}), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            self.wfile.write(archive)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AMAML_BENCH_CACHE", str(tmp_path / "cache"))
        monkeypatch.setitem(
            data.DATA,
            "movielens_100k",
            replace(
                data.DATA["movielens_100k"],
                urls=(f"http://127.0.0.1:{server.server_port}/ml-100k.zip",),
                archive_hash=f"md5:{md5(archive).hexdigest()}",
                content_hash=data.content_hash(TABLE),
            ),
        )
        yield asked
        server.shutdown()


def test_what_is_fetched_is_kept(publisher):
    assert data.fetch("movielens_100k") == data.fetch("movielens_100k") == data.find("movielens_100k")
    assert publisher == ["/ml-100k.zip"]
    assert equal(data.load("movielens_100k"), TABLE)


def test_a_wrong_checksum_is_refused_and_nothing_kept(publisher, monkeypatch):
    wrong = replace(data.DATA["movielens_100k"], archive_hash="md5:" + 32 * "0")
    monkeypatch.setattr(data, "_refusals", {})
    monkeypatch.setitem(data.DATA, "movielens_100k", wrong)
    with pytest.raises(InputError, match=r"ml-100k.zip.*AMAML_BENCH_DATA"):
        data.fetch("movielens_100k")
    assert data.find("movielens_100k") is None


def test_a_publisher_that_does_not_answer_is_told_of(publisher, monkeypatch):
    gone = replace(data.DATA["movielens_100k"], urls=("http://127.0.0.1:9/ml-100k.zip",))
    monkeypatch.setitem(data.DATA, "movielens_100k", gone)
    with pytest.raises(InputError, match=r"127.0.0.1:9/ml-100k.zip.*AMAML_BENCH_DATA"):
        data.fetch("movielens_100k")


def test_a_stored_copy_stands_in_for_a_publisher_that_does_not_answer(publisher, monkeypatch):
    known = data.DATA["movielens_100k"]
    both = replace(known, urls=("http://127.0.0.1:9/gone.zip", *known.urls))
    monkeypatch.setitem(data.DATA, "movielens_100k", both)
    data.fetch("movielens_100k")
    assert equal(data.load("movielens_100k"), TABLE)


def test_a_directory_that_is_none_is_told_of(monkeypatch, tmp_path):
    monkeypatch.setenv("AMAML_BENCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere"):
        data.load("jester")


def test_the_terms_are_shown_once(monkeypatch, tmp_path):
    monkeypatch.setenv("AMAML_BENCH_CACHE", str(tmp_path))
    told = []
    for _ in range(2):
        data.show_terms("jester", told.append)
    assert len(told) == 1
    assert "Goldberg" in told[0]
