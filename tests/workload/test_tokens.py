"""Data sets of tokens: files of ids, tables, text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hessdist.errors import HessdistError
from hessdist.workload.datasets import build_dataset
from hessdist.workload.tokens import TokenDataset, pydoc, tokens


def rows(dataset: TokenDataset) -> list[list[int]]:
    return [dataset[i]["input_ids"].tolist() for i in range(len(dataset))]


def test_packed_documents_are_joined_and_the_rest_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("efgh", encoding="utf-8")
    (tmp_path / "a.txt").write_text("abcd", encoding="utf-8")
    (tmp_path / "c.md").write_text("zz", encoding="utf-8")
    dataset = tokens(str(tmp_path / "*.txt"), 3)
    assert rows(dataset) == [list(b"abc"), list(b"def")]
    assert dataset[0]["input_ids"].dtype == torch.int64
    several = tokens([str(tmp_path / "b.txt"), str(tmp_path / "*.txt")], 4)
    assert rows(several) == [list(b"efgh"), list(b"abcd")]


def test_documents_that_are_not_packed_are_padded_with_a_mask(tmp_path: Path) -> None:
    for name, text in (("a", "abcde"), ("b", "xy"), ("c", "z"), ("d", "")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    dataset = tokens(str(tmp_path / "*.txt"), 4, packed=False)
    assert rows(dataset) == [list(b"abcd"), list(b"xy")]  # one token predicts nothing
    batch = dataset.collate_fn([dataset[0], dataset[1]])
    assert batch["input_ids"].tolist() == [list(b"abcd"), [*b"xy", 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert set(dataset.collate_fn([dataset[0]])) == {"input_ids"}


def test_bytes_are_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("é∂", encoding="utf-8")
    assert rows(tokens(str(tmp_path / "a"), 5)) == [list("é∂".encode())]


def test_files_of_ids(tmp_path: Path) -> None:
    ids = np.arange(12)
    np.save(tmp_path / "flat.npy", ids.astype(np.uint16))
    np.save(tmp_path / "rows.npy", ids.reshape(3, 4).astype(np.int32))
    ids.astype(np.uint16).tofile(tmp_path / "train.bin")
    ids.astype(np.uint32).tofile(tmp_path / "wide.bin")
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    for name in ("flat.npy", "rows.npy", "train.bin"):
        assert rows(tokens(str(tmp_path / name), 4)) == expected
    assert rows(tokens(str(tmp_path / "wide.bin"), 4, bin_dtype="uint32")) == expected
    assert rows(tokens(str(tmp_path / "rows.npy"), 3, packed=False)) == [r[:3] for r in expected]
    mapped = tokens(str(tmp_path / "flat.npy"), 4).ids
    assert isinstance(mapped, np.memmap)


def test_tables(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"input_ids": [[1, 2, 3], [4, 5]], "words": ["ab", "cd"], "n": [1, 2]})
    parquet.write_table(table, tmp_path / "t.parquet")
    for name, kind in (("stream", pyarrow.ipc.new_stream), ("file", pyarrow.ipc.new_file)):
        with kind(str(tmp_path / f"{name}.arrow"), table.schema) as writer:
            writer.write_table(table)
    for name in ("t.parquet", "stream.arrow", "file.arrow"):
        path = str(tmp_path / name)
        assert rows(tokens(path, 3, packed=False)) == [[1, 2, 3], [4, 5]]
        assert rows(tokens(path, 4, column="words")) == [list(b"abcd")]
    assert "has no column text" in refusal(path=str(tmp_path / "t.parquet"), column="text")
    assert "int64 of shape ()" in refusal(path=str(tmp_path / "t.parquet"), column="n")
    (tmp_path / "bad.parquet").write_text("no table", encoding="utf-8")
    assert "cannot be read as tokens" in refusal(path=str(tmp_path / "bad.parquet"))


def test_a_tokenizer_of_the_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_tokenizer(tmp_path / "run", ["[UNK]", "to", "be", "or", "not"])
    (tmp_path / "a.txt").write_text("to be or not to be", encoding="utf-8")
    dataset = tokens(str(tmp_path / "a.txt"), 3, tokenizer=str(tmp_path / "run"))
    assert rows(dataset) == [[1, 2, 3], [4, 1, 2]]


def write_tokenizer(folder: Path, words: list[str]) -> None:
    """A tokenizer of whole words, as a run's folder has it."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    numbered = {word: number for number, word in enumerate(words)}
    model = tokenizers.models.WordLevel(numbered, unk_token=words[0])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def test_a_folder_of_a_run_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    """transformers makes a tokenizer of special words alone of it: every word would be unknown."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "a.txt").write_text("to be or not to be " * 9, encoding="utf-8")
    for config in (transformers.GPT2Config(), transformers.BertConfig()):
        config.save_pretrained(tmp_path)
        line = refusal(path=str(tmp_path / "a.txt"), length=4, tokenizer=str(tmp_path))
        assert "no tokenizer" in line


def test_pythons_topics() -> None:
    dataset = pydoc(64)
    assert len(dataset) > 3000
    assert dataset[5]["input_ids"].shape == (64,)
    assert max(row.max() for row in (dataset[i]["input_ids"] for i in range(50))) < 256


def refusal(**arguments: Any) -> str:
    """The line with which a job is refused."""
    with pytest.raises(HessdistError) as caught:
        build_dataset("tokens", None, {"length": 4, **arguments})
    line = str(caught.value)
    assert line.isprintable()
    assert caught.value.remedy
    assert caught.value.exit_status == 2
    return line


def test_refusals(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("abc", encoding="utf-8")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty.bin").touch()
    (tmp_path / "odd.bin").write_bytes(b"abc")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\x00abcdef")
    np.save(tmp_path / "real.npy", np.linspace(0, 1, 9))
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2), int))
    np.save(tmp_path / "number.npy", np.array(3))
    np.save(tmp_path / "objects.npy", np.array([[1], "a"], dtype=object), allow_pickle=True)
    path = {name: str(tmp_path / name) for name in (
        "a.txt", "empty.txt", "empty.bin", "odd.bin", "latin.txt", "real.npy", "cube.npy",
        "number.npy", "objects.npy", "missing-*.txt",
    )}  # fmt: skip
    assert "there is no sequence of 4 tokens" in refusal(path=path["a.txt"])
    assert "there is no sequence" in refusal(path=path["empty.txt"])
    assert "there is no sequence of 2 tokens" in refusal(path=path["empty.txt"], packed=False)
    assert "no file fits" in refusal(path=path["missing-*.txt"])
    assert "is a folder" in refusal(path=str(tmp_path))
    assert "length is 1" in refusal(path=path["a.txt"], length=1)
    assert "no tokenizer" in refusal(path=path["a.txt"], tokenizer=str(tmp_path))
    assert "float64 of shape (9,)" in refusal(path=path["real.npy"])
    for name in ("empty.bin", "odd.bin", "latin.txt", "cube.npy", "number.npy", "objects.npy"):
        assert "cannot be read as tokens" in refusal(path=path[name])
    np.arange(9, dtype=np.uint16).tofile(tmp_path / "good.bin")
    for dtype in ("float32", "words"):
        line = refusal(path=str(tmp_path / "good.bin"), bin_dtype=dtype)
        assert "cannot be read as tokens" in line
    for wrong in ({"length": "many"}, {"path": 3}, {"path": []}, {"pathh": "a"}):
        refusal(**{"path": path["a.txt"], **wrong})
