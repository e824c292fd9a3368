"""PDF: text with its page, bookmarks as titles, and damage that is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import DataError
from tunesmith.retrieve import pdf
from tunesmith.retrieve.documents import read_documents

pypdf = pytest.importorskip("pypdf")


def write_pdf(path: Path, pages: list[str], bookmarks: dict[str, int] | None = None, password: str = "") -> Path:
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = pypdf.PdfWriter()
    font = DictionaryObject(
        {NameObject(f"/{key}"): NameObject(f"/{value}") for key, value in
         {"Type": "Font", "Subtype": "Type1", "BaseFont": "Helvetica"}.items()}
    )  # fmt: skip
    for text in pages:
        page = writer.add_blank_page(width=300, height=300)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
        content = DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(content)
    for title, number in (bookmarks or {}).items():
        writer.add_outline_item(title, page_number=number)
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    writer.write(path)
    return path


def test_sections_run_from_bookmark_to_bookmark_and_know_their_pages(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", ["Cover", "First part", "goes on", "Second part"], {"One": 1, "Two": 3})
    (document,) = read_documents(path, "a.pdf")
    assert [(section.titles, section.text) for section in document.sections] == [
        ((), "Cover\n"),
        (("One",), "First part\ngoes on\n"),
        (("Two",), "Second part\n"),
    ]
    assert document.sections[1].page_at(document.sections[1].text.index("goes")) == 3


def test_scanned_locked_cut_off_and_endless_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            read_documents(path, path.name)
        return str(caught.value.problems[0])

    assert "holds no text. Make its text readable by OCR" in said(write_pdf(tmp_path / "scan.pdf", [""]))
    assert "locked with a password" in said(write_pdf(tmp_path / "locked.pdf", ["x"], password="key"))
    (tmp_path / "cut.pdf").write_bytes((tmp_path / "scan.pdf").read_bytes()[:100])
    assert "cut.pdf" in said(tmp_path / "cut.pdf")
    monkeypatch.setattr(pdf, "MAX_PAGES", 1)
    assert "2 pages" in said(write_pdf(tmp_path / "long.pdf", ["a", "b"]))
