"""WebDataset shards: tar files in which the parts of a sample share a name (`0001.jpg`, `0001.txt`, `0001.json`).

Nothing is unpickled: pictures go through the toolkit's own reader, texts are UTF-8, conversations are JSON.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mm.data.conversation import chat_messages, conversation_sample, llava_messages
from mm.data.reading import OnError, Reader, Record, read_picture
from mm.data.sample import VisualSample
from mm.extras import require

PICTURES = ("png", "jpg", "jpeg", "webp")


def _picture_keys(record: dict[str, Any]) -> list[str]:
    """Names of the picture parts: `jpg`, or `0.jpg`, `1.jpg`, ... in their order."""
    keys = [key for key in record if key.rsplit(".", 1)[-1].lower() in PICTURES]
    return sorted(keys, key=lambda key: (len(key), key))


def _text(record: dict[str, Any], key: str) -> str:
    try:
        return record[key].decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"part {key!r} is not UTF-8 text ({error})") from error


class WebDatasetShards(Reader):
    """Reads tar shards, local or by any address that the webdataset library opens.

    That library runs `pipe:` addresses as commands: take addresses only from sources you trust.

    A sample holds pictures and either `json` with `conversations` or `messages`, or `txt` (the caption), or `cls`
    (the class, the answer to `question`).

    Args:
        urls: One address, with braces for several shards ("train-{000..127}.tar"), or a list of addresses.
        question: What is asked about every picture that has a class.
        on_error: What to do with a bad sample, or with a shard that breaks off: its samples so far are kept and the
            break counts as one bad record.

    Raises:
        ImportError: the library is missing; it is part of the `train` extra.
    """

    def __init__(
        self, urls: str | list[str], *, question: str = "what is in the picture?", on_error: OnError = "raise"
    ) -> None:
        super().__init__(urls if isinstance(urls, str) else ", ".join(urls[:3]), on_error=on_error)
        library = require("webdataset", extra="train", purpose="Reading WebDataset shards")
        self.urls: list[str] = library.shardlists.expand_urls(urls) if isinstance(urls, str) else list(urls)
        self.question = question
        if not self.urls:
            raise ValueError("no shards were named; give at least one address of a tar file")

    def records(self) -> Iterator[Record]:
        for url in self.urls:
            yield from self._shard(url)

    def _shard(self, url: str) -> Iterator[Record]:
        tariterators = require("webdataset.tariterators", extra="train", purpose="Reading WebDataset shards")
        try:
            groups = tariterators.tarfile_samples([{"url": url}])
            for index, record in enumerate(groups):
                place = f"{url}: sample {index} ({record['__key__']})"
                yield place, partial(self._read, record, url, index)
        except (OSError, EOFError, ValueError, tarfile.TarError) as error:
            yield url, partial(_broken, f"the shard can't be read to its end ({error})")

    def _read(self, record: dict[str, Any], url: str, index: int) -> VisualSample:
        meta = {"file": url, "index": index, "id": record["__key__"]}
        keys = _picture_keys(record)

        def read(key: str) -> Any:
            return read_picture(record[key], name=f"part {key!r}")

        if "json" in record:
            return self._conversation(record, keys, read, meta)
        images = [read(key) for key in keys]
        text = _text(record, "txt") if "txt" in record else ""
        answer = _text(record, "cls") if "cls" in record else ""
        if not images and not text:
            raise ValueError(f"holds neither a picture nor a text; its parts are {', '.join(_parts(record))}")
        return VisualSample(images, self.question if answer else "", answer, text, meta)

    def _conversation(
        self, record: dict[str, Any], keys: list[str], read: Callable[[str], Any], meta: dict[str, Any]
    ) -> VisualSample:
        try:
            data = json.loads(record["json"])
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"part 'json' is not valid JSON ({error})") from error
        if isinstance(data, dict) and "conversations" in data:
            return conversation_sample(llava_messages(data["conversations"]), keys, read, meta)
        if isinstance(data, dict) and "messages" in data:
            return conversation_sample(chat_messages(data["messages"]), keys, read, meta)
        text = data.get("caption") if isinstance(data, dict) else None
        if text is None and "txt" in record:
            text = _text(record, "txt")
        if not isinstance(text, str):
            raise ValueError("part 'json' holds none of conversations, messages and caption, and there is no 'txt'")
        return VisualSample([read(key) for key in keys], "", "", text.strip(), meta)


def _parts(record: dict[str, Any]) -> list[str]:
    return [key for key in record if not key.startswith("__")] or ["none"]


def _broken(message: str) -> VisualSample:
    raise ValueError(message)
