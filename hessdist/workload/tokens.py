"""Data sets of tokens: from files of token ids, tables, or text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessdist.errors import DataError
from hessdist.workload.factories import one_line
from hessdist.workload.huggingface import loaded
from hessdist.workload.optional import import_library

_Ids = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class TokenDataset:
    """Sequences of token ids, which may lie in a file that is mapped into memory.

    A sample is a mapping of `input_ids`, (n,) int64. Sequences of different lengths are padded by
    `collate_fn`, which adds `attention_mask`; the labels that a loss makes of the mask leave the
    padding out.
    """

    ids: _Ids  # of all sequences, one after the other
    begins: NDArray[np.int64]  # (N,)
    lengths: NDArray[np.int64]  # (N,)

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self.begins)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return a sequence."""
        begin = int(self.begins[index])
        ids = self.ids[begin : begin + int(self.lengths[index])]
        return {"input_ids": torch.from_numpy(np.asarray(ids).astype(np.int64))}

    @staticmethod
    def collate_fn(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Make a batch of sequences, padded to the longest of them.

        Args:
            samples: The sequences.

        Returns:
            `input_ids`, (B, T), and, where lengths differ, `attention_mask`, (B, T), 0 at padding.
        """
        rows = [sample["input_ids"] for sample in samples]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        if bool((lengths == ids.shape[1]).all()):
            return {"input_ids": ids}
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return {"input_ids": ids, "attention_mask": mask}


def tokens(
    path: str | Sequence[str],
    length: int,
    tokenizer: str = "bytes",
    packed: bool = True,
    column: str | None = None,
    bin_dtype: str = "uint16",
) -> TokenDataset:
    """Open files of tokens or of text as sequences.

    Files are read by their names: `.npy` (ids, 1-D, or one sequence a row), `.bin` (raw ids, as
    nanoGPT writes them), `.parquet` and `.arrow` (a column of lists of ids, or of text); anything
    else is text in UTF-8, one document a file.

    Args:
        path: A path with wildcards, or several. Files are taken in the order of their names.
        length: The number of tokens of a sequence, 2 or more.
        tokenizer: For text: "bytes", ids 0 ... 255 of the UTF-8 encoding, or a folder or name of
            the hub with a tokenizer of transformers.
        packed: Whether documents are joined and cut into sequences of exactly `length`, the rest
            left out. Otherwise each document is a sequence, cut off after `length`.
        column: The column of a table; by default `input_ids`, or else `text`.
        bin_dtype: The type of ids in `.bin` files.

    Returns:
        The data set.

    Raises:
        DataError: No file fits, a file cannot be read, or there is no sequence.
    """
    if length < 2:
        raise DataError(f"length is {length}", "use 2 tokens or more: each predicts the next one")
    paths = _matching([path] if isinstance(path, str) else path)
    encode = _Encoder(tokenizer)
    documents = [
        document
        for one in paths
        for document in _documents(one, encode, column, bin_dtype)
        if len(document)
    ]
    return sequences(documents, length, packed, f"in {', '.join(map(str, paths[:3]))}")


def pydoc(length: int = 128, packed: bool = True) -> TokenDataset:
    """Open the texts of Python's own `help()` as bytes: about 460 KB that every Python has.

    Args:
        length: As in `tokens`.
        packed: As in `tokens`.

    Returns:
        The data set. The text differs a little between versions of Python.
    """
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    return sequences([_bytes(text) for text in texts], length, packed, "in Python's topics")


def sequences(
    documents: Sequence[_Ids], length: int, packed: bool = True, where: str = ""
) -> TokenDataset:
    """Cut documents into sequences.

    Args:
        documents: The ids of each document.
        length: The number of tokens of a sequence; the largest if they are not packed.
        packed: Whether documents are joined and cut into sequences of exactly `length`.
        where: Where the documents are, for the message.

    Returns:
        The data set.

    Raises:
        DataError: There is no sequence.
    """
    ids = documents[0] if len(documents) == 1 else np.concatenate(documents or [np.empty(0, int)])
    if packed:
        count = len(ids) // length
        begins = np.arange(count, dtype=np.int64) * length
        lengths = np.full(count, length, np.int64)
    else:
        sizes = np.array([len(document) for document in documents], np.int64)
        begins, lengths = np.cumsum(sizes) - sizes, np.minimum(sizes, length)
        begins, lengths = begins[lengths > 1], lengths[lengths > 1]
    if not len(begins):
        raise DataError(
            f"there is no sequence of {length if packed else 2} tokens {where}".rstrip(),
            "check data.arguments.path, or use a shorter length",
        )
    return TokenDataset(ids, begins, lengths)


def _matching(patterns: Iterable[str]) -> list[Path]:
    found: dict[Path, None] = {}
    for pattern in patterns:
        names = _glob(pattern)
        if not names:
            raise DataError(f"no file fits data.arguments.path '{pattern}'", "check the path")
        found.update(dict.fromkeys(names))
    for path in found:
        if path.is_dir():
            raise DataError(f"'{path}' is a folder", f"name files, such as '{path}/*.txt'")
    return list(found)


def _glob(pattern: str) -> list[Path]:
    """Find the files of a pattern with wildcards, in the order of their names."""
    path = Path(pattern)
    if path.exists():
        return [path]
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    return sorted(anchor.glob(str(path.relative_to(path.anchor)) or "."))


def _documents(path: Path, encode: _Encoder, column: str | None, bin_dtype: str) -> Iterator[_Ids]:
    """Read the documents of a file.

    Yields:
        The ids of each.

    Raises:
        DataError: The file cannot be read as tokens.
    """
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            yield from map(_checked, array if array.ndim == 2 else [array])
        elif path.suffix == ".bin":
            yield _checked(np.memmap(path, np.dtype(bin_dtype), "r"))
        elif path.suffix in (".parquet", ".arrow"):
            yield from map(encode, _column(path, column))
        else:
            yield encode(path.read_text(encoding="utf-8"))
    except DataError:
        raise
    except (OSError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as tokens ({one_line(error)})",
            "give .npy, .bin, .parquet, .arrow or text in UTF-8, by the name of the file",
        ) from error


def _column(path: Path, column: str | None) -> Iterator[Any]:
    """Read a column of a table.

    Yields:
        The text, or the ids, of each row.

    Raises:
        DataError: There is no such column.
    """
    pyarrow = import_library("pyarrow")
    if path.suffix == ".parquet":
        table = import_library("pyarrow.parquet").read_table(path)
    else:
        with pyarrow.memory_map(str(path)) as source:
            try:
                table = pyarrow.ipc.open_stream(source).read_all()
            except pyarrow.ArrowInvalid:
                table = pyarrow.ipc.open_file(source).read_all()
    names = [column] if column else ["input_ids", "text"]
    name = next((one for one in names if one in table.column_names), None)
    if name is None:
        raise DataError(
            f"{path} has no column {' or '.join(names)}",
            f"name one of {', '.join(table.column_names)} (data.arguments.column)",
        )
    for row in table[name]:
        yield row.as_py()


class _Encoder:
    """Makes ids of text; ids stay as they are."""

    def __init__(self, tokenizer: str) -> None:
        self._name = tokenizer
        self._tokenizer: Any = None

    def __call__(self, document: str | Sequence[int]) -> _Ids:
        """Encode a document."""
        if not isinstance(document, str):
            ids = np.asarray(document)
            return _checked(ids if ids.size else ids.astype(np.int64))
        if self._name == "bytes":
            return _bytes(document)
        if self._tokenizer is None:
            self._tokenizer = self._load()
        encoded: Mapping[str, Any] = self._tokenizer(document, verbose=False)
        return np.asarray(encoded["input_ids"], np.int64)

    def _load(self) -> Any:
        transformers = import_library("transformers")
        try:
            tokenizer = loaded(transformers.AutoTokenizer.from_pretrained, self._name)
            # Of a folder without its files, transformers makes one that knows no word.
            if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
                raise FileNotFoundError("it has no vocabulary")
        except Exception as error:  # of any class: files of tokenizers are read by other libraries
            raise DataError(
                f"data.arguments.tokenizer '{self._name}' is no tokenizer ({one_line(error)})",
                "name a folder with tokenizer.json, a model of the hub that the cache has or the "
                "network gives, or 'bytes'",
            ) from error
        return tokenizer


def _checked(ids: NDArray[Any]) -> _Ids:
    """Refuse what is no list of integers."""
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise TypeError(f"ids are integers in a row, not {ids.dtype} of shape {ids.shape}")
    return ids


def _bytes(text: str) -> _Ids:
    return np.frombuffer(text.encode(), np.uint8)
