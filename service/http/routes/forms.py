"""The files of a multipart form, read in memory."""

from collections.abc import AsyncGenerator

from starlette.datastructures import Headers as FormHeaders
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import InvalidInput
from service.http.types import Headers


class _FormParser(MultiPartParser):
    """Keeps files in memory: they are there already, bounded, and the file system may be read-only."""

    spool_max_size = 0  # SpooledTemporaryFile's value for "never to the disk"


async def read_files(headers: Headers, body: bytes, most: int) -> list[bytes]:
    """Return the contents of a multipart form's files, at least one. Raises InvalidInput."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _FormParser(FormHeaders(raw=list(headers.items())), stream(), max_files=most, max_fields=16)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidInput(f"form cannot be read: {error.message}") from None
    fields = [name for name, value in form.multi_items() if not isinstance(value, UploadFile)]
    files = [await value.read() for _, value in form.multi_items() if isinstance(value, UploadFile)]
    await form.close()
    if fields or not files:
        raise InvalidInput(f"form has {len(files)} files and the fields {fields[:5]}, expected only files")
    return files
