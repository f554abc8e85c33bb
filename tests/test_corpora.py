import contextlib
import gzip
import hashlib
import io
import socket
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hsae import corpora
from hsae.corpora import Corpus, CorpusName, DataConfig, Document, Download, clean_play, fetch, load_corpus

TINYSHAKESPEARE = Path(__file__).resolve().parents[2] / "shared" / "corpora" / "tinyshakespeare.txt"

PLAY = r"""# The Play

## ACT I

### SCENE I. A room.

_Enter ANNE &amp; BOB_

**ANNE**$$
Good morrow,$$$
sweet _\[Aside\]_ Bob.



**BOB**$$
A stray_ mark.

*Exit ANNE*

**FIRST LORD**$$
\--not _\[so\]_, **sir**: \#1
""".replace("$", " ")  # spaces at the ends of lines

PLAIN = """The Play

ACT I

SCENE I. A room.

[Enter ANNE & BOB]

ANNE:
Good morrow,
sweet [Aside] Bob.

BOB:
A stray mark.

[Exit ANNE]

FIRST LORD:
--not [so], [sir]: 1
"""


def settings(corpus: CorpusName, path: Path | None = None, max_chars: int | None = None) -> DataConfig:
    return DataConfig(corpus, path and str(path), 0.1, 0.1, 0.1, max_chars)


# Plays and books


def test_a_play_loses_its_markup_and_keeps_its_words():
    # The bold word within a line is not a speaker's name, so it is marked as all other emphasis is.
    assert clean_play(PLAY) == PLAIN


@pytest.mark.parametrize(
    ("markdown", "plain"),
    [
        ("_Enter A_ and _exit B_", "[Enter A] and [exit B]\n"),
        ("a_ b\n\n_Exit C_", "a b\n\n[Exit C]\n"),
        ("a_ b\n\nc_ d", "a b\n\nc d\n"),
        ("__Flourish__", "[Flourish]\n"),
        ("no markup", "no markup\n"),
    ],
)
def test_stage_directions_stand_in_brackets(markdown: str, plain: str):
    assert clean_play(markdown) == plain


@pytest.fixture(scope="module")
def shakespeare() -> Corpus:
    return load_corpus(settings(CorpusName.shakespeare), Path("unused"))


def test_shakespeare_has_no_markup_left(shakespeare: Corpus):
    assert not set("*_#\\\r\t") & set(shakespeare.text)


def test_shakespeare_is_38_plays_of_about_five_million_characters(shakespeare: Corpus):
    assert len(shakespeare.documents) == 38
    assert len({document.title for document in shakespeare.documents}) == 38
    assert len(shakespeare.text) == pytest.approx(5.0e6, rel=0.01)


def test_a_play_starts_where_its_document_says(shakespeare: Corpus):
    starts = {document.title: document.start for document in shakespeare.documents}
    assert list(starts.values()) == sorted(starts.values())
    for title, heading in {"hamlet": "Hamlet", "as-you-like-it": "As You Like It", "macbeth": "Macbeth"}.items():
        assert shakespeare.text.startswith(f"\n{heading}\n\nACT I\n", starts[title] - 1)


def test_the_bible_has_66_books_that_start_with_their_titles():
    corpus = load_corpus(settings(CorpusName.kjv), Path("unused"))
    assert len(corpus.documents) == 66
    assert corpus.text.startswith("Genesis\n\n1:1 In the beginning God created the heaven and the earth.\n1:2 ")
    assert all(corpus.text.startswith(document.title + "\n\n1:1 ", document.start) for document in corpus.documents)


# A user's file


def test_a_text_file_is_one_document_under_its_name(tmp_path: Path):
    path = tmp_path / "story.txt"
    path.write_text("Once — é\nupon", encoding="utf-8")
    corpus = load_corpus(settings(CorpusName.text_file, path), tmp_path)
    assert corpus == Corpus("Once — é\nupon", [Document("story", 0)])


def test_max_chars_keeps_the_beginning_of_every_document(shakespeare: Corpus):
    cut = load_corpus(settings(CorpusName.shakespeare, max_chars=60_000), Path("unused"))
    assert len(cut.text) == 60_000
    assert [document.title for document in cut.documents] == [document.title for document in shakespeare.documents]
    share = 60_000 / len(shakespeare.text)
    for part, whole in zip(cut.parts(), shakespeare.parts(), strict=True):
        assert whole.startswith(part)
        assert len(part) == pytest.approx(share * len(whole), abs=1)
    assert load_corpus(settings(CorpusName.shakespeare, max_chars=10**9), Path("unused")) == shakespeare


def test_a_document_of_which_nothing_is_left_is_none():
    corpus = Corpus("aaaaaaaabb" + "c" * 90, [Document("a", 0), Document("b", 8), Document("c", 10)])
    assert corpus.parts() == ["a" * 8, "bb", "c" * 90]
    assert corpus.shortened(10) == Corpus("a" + "c" * 9, [Document("a", 0), Document("c", 1)])
    one = Corpus("abcdef", [Document("one", 0)])
    assert one.shortened(4) == Corpus("abcd", [Document("one", 0)])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, r"story\.txt is missing"),
        (b"", r"story\.txt\) is empty"),
        (b"ab\xff", r"story\.txt is not UTF-8: byte 2"),
    ],
)
def test_a_text_file_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, content: bytes | None, expected: str):
    path = tmp_path / "story.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=expected) as refusal:
        load_corpus(settings(CorpusName.text_file, path), tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((CorpusName.kjv, None, 0.0, 0.1, 0.1, None), "`val_fraction` must be above 0; not 0.0"),
        ((CorpusName.kjv, None, 0.1, 0.0, 0.1, None), "`final_fraction` must be above 0; not 0.0"),
        (
            (CorpusName.kjv, None, 0.5, 0.25, 0.25, None),
            r"`val_fraction \+ final_fraction \+ test_fraction` must be below 1; not 1.0",
        ),
        ((CorpusName.kjv, None, 0.1, 0.1, 0.1, 0), "`max_chars` must be above 0, or null; not 0"),
        ((CorpusName.text_file, None, 0.1, 0.1, 0.1, None), "`path` must be the file to read when corpus is text_file"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: tuple, expected: str):
    with pytest.raises(ValueError, match=expected):
        DataConfig(*values)


# Published files


@pytest.fixture
def tinyshakespeare() -> bytes:
    if not TINYSHAKESPEARE.is_file():
        pytest.skip(f"{TINYSHAKESPEARE} is not here: the published file is optional test data")
    return TINYSHAKESPEARE.read_bytes()


def test_a_local_copy_of_the_published_file_is_read(tinyshakespeare: bytes, tmp_path: Path):
    corpus = load_corpus(settings(CorpusName.shakespeare_char, TINYSHAKESPEARE), tmp_path)
    assert corpus == Corpus(tinyshakespeare.decode(), [Document("shakespeare_char", 0)])
    assert len(corpus.text) == 1_115_394
    assert list(tmp_path.iterdir()) == []


def test_a_local_copy_with_one_changed_byte_is_refused(tinyshakespeare: bytes, tmp_path: Path):
    damaged = bytearray(tinyshakespeare)
    damaged[500_000] ^= 1
    (tmp_path / "copy.txt").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"copy\.txt: not the published shakespeare_char: expected sha256 86c4e6aa"):
        load_corpus(settings(CorpusName.shakespeare_char, tmp_path / "copy.txt"), tmp_path)


# Downloads

CONTENT = bytes(range(256)) * 40


def published(url: str, content: bytes = CONTENT, encoding: str = "utf-8") -> Download:
    return Download(url, len(content), hashlib.sha256(content).hexdigest(), encoding)


@dataclass
class Site:
    """A web server on this machine: what it holds, how it behaves, and what it was asked and sent."""

    url: str
    content: bytes = CONTENT
    supports_ranges: bool = True
    compresses: bool = False
    break_after: int | None = None
    fails_with: int | None = None
    endless: bool = False
    asked: list[str | None] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            redirect = {"/moved": "/file", "/circle": "/circle"}.get(self.path)
            if redirect:
                self.send_response(302)
                self.send_header("Location", redirect)
                self.end_headers()
            elif site.fails_with:
                self.send_error(site.fails_with)
            elif site.endless:
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    while True:
                        self.wfile.write(site.content)
            else:
                self.answer()

        def answer(self) -> None:
            asked = self.headers.get("Range")
            resumed = asked is not None and site.supports_ranges
            compressed = site.compresses and "gzip" in self.headers.get("Accept-Encoding", "")
            # A range counts the bytes of what is sent: of the compressed file where the client accepts one.
            body = gzip.compress(site.content) if compressed else site.content
            rest = body[int(asked.removeprefix("bytes=").removesuffix("-")) :] if asked and resumed else body
            if not rest:
                self.send_error(416)
                return
            sent = rest[: site.break_after]
            site.asked.append(asked)
            site.sent.append(len(sent))
            self.send_response(206 if resumed else 200)
            self.send_header("Content-Length", str(len(rest)))
            if resumed:
                self.send_header("Content-Range", f"bytes {len(body) - len(rest)}-{len(body) - 1}/{len(body)}")
            if compressed:
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, format: str, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site = Site(f"http://127.0.0.1:{server.server_address[1]}/file")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield site
        server.shutdown()
        thread.join()


def test_a_download_arrives_whole_and_leaves_no_part_behind(site: Site, tmp_path: Path):
    target = tmp_path / "new" / "file.bin"
    fetch(published(site.url), target)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert site.asked == [None]


def test_a_download_goes_on_where_it_stopped(site: Site, tmp_path: Path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    fetch(published(site.url), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert site.asked == ["bytes=1000-"]
    assert site.sent == [len(CONTENT) - 1000]


def test_a_part_that_is_complete_is_verified_without_asking_again(site: Site, tmp_path: Path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch(published(site.url), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert site.asked == []


def test_a_server_that_cannot_resume_sends_the_whole_file_and_it_replaces_the_part(site: Site, tmp_path: Path):
    site.supports_ranges = False
    (tmp_path / "file.bin.part").write_bytes(b"?" * 1000)
    fetch(published(site.url), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert site.asked == ["bytes=1000-"]
    assert site.sent == [len(CONTENT)]


@pytest.mark.parametrize("have", [0, 1000])
def test_a_server_that_would_compress_sends_the_published_bytes(site: Site, tmp_path: Path, have: int):
    site.compresses = True
    if have:
        (tmp_path / "file.bin.part").write_bytes(CONTENT[:have])
    fetch(published(site.url), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("arriving", "expected"),
    [
        (CONTENT[:-1] + b"!", "expected sha256 .*, found .*; the download was thrown away"),
        (CONTENT[:-1], "expected 10240 bytes, found 10239; the download was thrown away"),
        (CONTENT + b"!", "expected 10240 bytes, found 10241; the download was thrown away"),
    ],
)
def test_another_file_than_the_published_one_is_thrown_away(site: Site, tmp_path: Path, arriving: bytes, expected: str):
    site.content = arriving
    with pytest.raises(ValueError, match=expected):
        fetch(published(site.url), tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_another_file_is_thrown_away_so_that_the_next_try_succeeds(site: Site, tmp_path: Path):
    (tmp_path / "file.bin.part").write_bytes(b"?" * 1000)
    with pytest.raises(ValueError, match="sha256"):
        fetch(published(site.url), tmp_path / "file.bin")
    fetch(published(site.url), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_broken_connection_keeps_what_came_and_the_next_try_finishes(site: Site, tmp_path: Path):
    site.content = CONTENT * 300
    site.break_after = 2_500_000
    download = published(site.url, site.content)
    with pytest.raises(ValueError, match=r"cannot download .*; run again to go on") as refusal:
        fetch(download, tmp_path / "file.bin")
    assert "\n" not in str(refusal.value)
    kept = (tmp_path / "file.bin.part").read_bytes()
    assert len(kept) > 1_000_000
    assert site.content.startswith(kept)
    assert not (tmp_path / "file.bin").exists()

    site.break_after = None
    fetch(download, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == site.content
    assert site.asked == [None, f"bytes={len(kept)}-"]


def test_a_download_that_breaks_again_and_again_arrives(site: Site, tmp_path: Path):
    site.content = CONTENT * 300
    site.break_after = 1_000_000
    download = published(site.url, site.content)
    for _ in range(3):
        with pytest.raises(ValueError, match="run again to go on"):
            fetch(download, tmp_path / "file.bin")
    fetch(download, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == site.content
    assert sum(site.sent) < 1.2 * len(site.content)


def test_a_part_that_is_longer_than_the_published_file_is_thrown_away_without_asking(site: Site, tmp_path: Path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"!")
    with pytest.raises(ValueError, match="expected 10240 bytes, found 10241; the download was thrown away"):
        fetch(published(site.url), tmp_path / "file.bin")
    assert site.asked == []
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_longer_than_the_file_there_is_thrown_away(site: Site, tmp_path: Path):
    site.content = CONTENT[:1000]
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:2000])
    with pytest.raises(ValueError, match="expected 10240 bytes, found 2000; the download was thrown away"):
        fetch(published(site.url), tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_end_is_not_read_to_its_end(site: Site, tmp_path: Path):
    site.endless = True
    with pytest.raises(ValueError, match=r"expected 10240 bytes, found .*; the download was thrown away"):
        fetch(published(site.url), tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_that_names_the_file(site: Site, tmp_path: Path):
    (tmp_path / "file.bin.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot write .*file\.bin\.part: .*No space left on device") as refusal:
        fetch(published(site.url), tmp_path / "file.bin")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "file.bin").exists()


def test_a_redirect_is_followed(site: Site, tmp_path: Path):
    fetch(published(site.url.replace("/file", "/moved")), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_redirect_that_leads_nowhere_is_one_line(site: Site, tmp_path: Path):
    with pytest.raises(ValueError, match=r"cannot download http.*/circle \(Exceeded 30 redirects") as refusal:
        fetch(published(site.url.replace("/file", "/circle")), tmp_path / "file.bin")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("status", [404, 500, 503])
def test_a_servers_error_is_one_line_and_keeps_what_is_here(site: Site, tmp_path: Path, status: int):
    site.fails_with = status
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    with pytest.raises(ValueError, match=rf"cannot download http.*/file \({status} .*run again to go on") as refusal:
        fetch(published(site.url), tmp_path / "file.bin")
    assert "\n" not in str(refusal.value)
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:1000]


def test_an_unreachable_server_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ValueError, match=f"cannot download http://127.0.0.1:{port}/file") as refusal:
        fetch(published(f"http://127.0.0.1:{port}/file"), tmp_path / "file.bin")
    assert "\n" not in str(refusal.value)


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def test_a_published_corpus_is_downloaded_once(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    site.content = zipped("text8", b" anarchism originated")
    url = site.url.replace("/file", "/text8.zip")
    monkeypatch.setitem(corpora.DOWNLOADS, CorpusName.text8, published(url, site.content))
    first, second = (load_corpus(settings(CorpusName.text8), tmp_path) for _ in range(2))
    assert first == second == Corpus(" anarchism originated", [Document("text8", 0)])
    assert len(site.asked) == 1


def test_a_download_that_was_altered_on_disk_is_refused(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    site.content = zipped("text8", b" anarchism originated")
    url = site.url.replace("/file", "/text8.zip")
    monkeypatch.setitem(corpora.DOWNLOADS, CorpusName.text8, published(url, site.content))
    load_corpus(settings(CorpusName.text8), tmp_path)
    (tmp_path / "text8.zip").write_bytes(site.content[:-1])
    with pytest.raises(ValueError, match=f"not the published text8: expected {len(site.content)} bytes"):
        load_corpus(settings(CorpusName.text8), tmp_path)


@pytest.mark.parametrize("content", [zipped("enwik8", b"another"), b"no zip file"])
def test_a_published_zip_without_the_corpus_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
):
    (tmp_path / "text8.zip").write_bytes(content)
    monkeypatch.setitem(corpora.DOWNLOADS, CorpusName.text8, published("http://unused/text8.zip", content))
    with pytest.raises(ValueError, match=r"text8\.zip is not a zip file that holds `text8`\."):
        load_corpus(settings(CorpusName.text8), tmp_path)


def test_enwik8_has_one_character_per_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = "naïve — π".encode()
    archive = zipped("enwik8", content)
    copy = tmp_path / "enwik8 (1)"  # a copy is known by its content, whatever it is called
    copy.write_bytes(archive)
    encoding = corpora.DOWNLOADS[CorpusName.enwik8].encoding
    monkeypatch.setitem(corpora.DOWNLOADS, CorpusName.enwik8, published("http://unused/a.zip", archive, encoding))
    corpus = load_corpus(settings(CorpusName.enwik8, copy), tmp_path)
    assert [ord(character) for character in corpus.text] == list(content)
