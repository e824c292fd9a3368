"""Files and uploads on OpenAI's wire: the fields of a form, bodies, and the words for a file that is no JSONL.

Not here: streaming (serve.multipart), rows (serve.records). Called by serve.routes.files and serve.routes.uploads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tunesmith.errors import MAX_SHOWN, DataError, Problem
from tunesmith.serve.records.files import StoredFile
from tunesmith.serve.records.uploads import Part, Upload
from tunesmith.serve.wire.errors import RequestError, problems_error

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
PURPOSES: tuple[str, ...] = get_args(Purpose)
JSONL_PURPOSES = {"fine-tune": "Fine-Tuning", "batch": "Batch", "evals": "Evals"}
MAX_NAME_CHARS = 255
MAX_UPLOAD_BYTES = 8 << 30
MIN_LIFE_S, MAX_LIFE_S = 3600, 2_592_000
JSONL_WORDS = "Expected file to have JSONL format, where every line is a JSON dictionary."


def _label(name: str) -> str:
    """A name to show. Control characters (with them NUL, which PostgreSQL cannot keep) are no part of one."""
    if any(ord(char) < 32 or 127 <= ord(char) < 160 or 0xD800 <= ord(char) < 0xE000 for char in name):
        raise ValueError("a file name cannot hold control characters")
    return name


FileName = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS), AfterValidator(_label)]


class ExpiresAfter(BaseModel):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=MIN_LIFE_S, le=MAX_LIFE_S)]


class FileForm(BaseModel):
    """What a form says of its file."""

    file: FileName
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """A file's name, what it is for, and how long it lives (None: until it is deleted)."""

    filename: str
    purpose: str
    life_s: int | None = None


def read_form(filename: str | None, fields: Mapping[str, str]) -> Label:
    """Raises RequestError naming every field that is wrong."""
    body: dict[str, Any] = {"file": filename or "upload", **{key: fields[key] for key in ("purpose",) if key in fields}}
    expiry = {
        key: fields[f"expires_after[{key}]"] for key in ("anchor", "seconds") if f"expires_after[{key}]" in fields
    }
    try:
        form = FileForm(**body, expires_after=expiry or None)
    except ValidationError as error:
        raise problems_error(error) from error
    return checked(Label(form.file, form.purpose, form.expires_after.seconds if form.expires_after else None))


def checked(label: Label) -> Label:
    """Raises RequestError when a file of this name cannot serve its purpose."""
    api = JSONL_PURPOSES.get(label.purpose)
    if api and not label.filename.lower().endswith(".jsonl"):
        raise RequestError(f"Invalid file format for {api} API. Must be .jsonl")
    return label


def file_body(file: StoredFile) -> dict[str, Any]:
    body: dict[str, Any] = {"id": file.id, "object": "file", "bytes": file.bytes, "created_at": file.created}
    body |= {"filename": file.filename, "purpose": file.purpose, "status": file.status, "status_details": None}
    return body if file.expires is None else body | {"expires_at": file.expires}


def jsonl_error(error: DataError) -> RequestError:
    """The first problems of a file with their lines, and how many there are."""
    lines = [_problem(problem) for problem in error.problems[:MAX_SHOWN]]
    if error.total > len(lines):
        lines.append(f"{error.total:,} lines are wrong; these are the first {len(lines)}.")
    return RequestError("\n".join([f"{JSONL_WORDS} {lines[0]}", *lines[1:], "Nothing was kept."]))


def _problem(problem: Problem) -> str:
    if problem.line is None:
        return f"{problem.what} {problem.todo}".strip().capitalize()
    place = f"column {problem.column}: " if problem.column else ""
    return f"Line {problem.line} is not a dictionary (HINT: {place}{problem.what} {problem.todo})."


# -- uploads in parts -----------------------------------------------------------------------------------------------


class UploadRequest(BaseModel):
    model_config = ConfigDict(strict=True)

    filename: FileName
    purpose: Purpose
    bytes: Annotated[int, Field(ge=0, le=MAX_UPLOAD_BYTES)]
    mime_type: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS), AfterValidator(_label)]
    expires_after: ExpiresAfter | None = None


class CompleteRequest(BaseModel):
    model_config = ConfigDict(strict=True)

    part_ids: list[str]
    md5: Annotated[str | None, Field(pattern="^[0-9a-fA-F]{32}$")] = None


def upload_body(upload: Upload, file: StoredFile | None = None) -> dict[str, Any]:
    body: dict[str, Any] = {"id": upload.id, "object": "upload", "bytes": upload.bytes, "created_at": upload.created}
    body |= {"filename": upload.filename, "purpose": upload.purpose, "status": upload.status}
    return body | {"expires_at": upload.expires, "file": file_body(file) if file else None}


def part_body(part: Part) -> dict[str, Any]:
    return {"id": part.id, "object": "upload.part", "created_at": part.created, "upload_id": part.upload}
