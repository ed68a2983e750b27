"""Token files: one flat array of ids, documents between end tokens, read as views."""

import json

import numpy as np
import pytest
from tiny_run import make_texts, token_file, tokenizer

from minillm.support.token_files import TokenFile, write_tokens
from minillm.tokenizer import Tokenizer, train_bpe

CHINESE = ["小猫安安住在河边的红房子里。", "“你看见我的蓝帽子了吗？”乐乐问。"]


def test_a_token_file_holds_the_documents_between_end_tokens(tmp_path):
    texts = [*make_texts(20), "", *CHINESE]
    facts = write_tokens(iter(texts), tokenizer(), tmp_path / "train")
    ids = np.load(tmp_path / "train.npy", mmap_mode="r")
    assert isinstance(ids, np.memmap) and ids.dtype == np.uint16 and ids.ndim == 1
    expected = [0]
    for text in texts:
        expected += [*tokenizer().encode(text), 0] if text else []
    assert ids.tolist() == expected
    assert facts == json.loads((tmp_path / "train.json").read_text())
    assert facts["tokens"] == len(expected) and facts["documents"] == len(texts) - 1
    assert facts["bytes"] == sum(len(text.encode()) for text in texts)
    assert facts["tokenizer"] == tokenizer().fingerprint()
    write_tokens(texts, tokenizer(), tmp_path / "same.npy")
    assert (tmp_path / "same.npy").read_bytes() == (tmp_path / "train.npy").read_bytes()


def test_large_vocabularies_get_32_bits(tmp_path):
    special = ["<|endoftext|>", *(f"<|{i}|>" for i in range(2**16))]
    wide = train_bpe([], 256 + len(special), special)
    write_tokens(["ab"], wide, tmp_path / "wide")
    ids = np.load(tmp_path / "wide.npy")
    assert ids.dtype == np.uint32 and ids.tolist() == [0, *wide.encode("ab"), 0]


def test_an_interrupted_token_file_leaves_nothing(tmp_path):
    def texts():
        yield "one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tokens(texts(), tokenizer(), tmp_path / "train")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="eos_token"):
        write_tokens(["one"], Tokenizer(tokenizer().spec), tmp_path / "train")


def test_a_document_is_two_views_one_token_apart(tmp_path):
    data, eot = token_file(tmp_path, count=5), tokenizer().eos_token_id
    assert len(data) == len(data.lengths) == 5
    for i, text in enumerate(make_texts(5)):
        ids = tokenizer().encode(text)
        inputs, labels = data[i]
        assert inputs.tolist() == [eot, *ids] and labels.tolist() == [*ids, eot]
        assert data.lengths[i] == len(ids) + 1
        assert np.shares_memory(inputs, labels)


def test_a_file_of_another_tokenizer_is_refused(tmp_path):
    other = train_bpe(make_texts(20), 270)
    write_tokens(make_texts(5), tokenizer(), tmp_path / "a.npy")
    with pytest.raises(ValueError, match="another tokenizer"):
        TokenFile(tmp_path / "a.npy", other)


def test_an_empty_file_is_refused(tmp_path):
    write_tokens([], tokenizer(), tmp_path / "a")
    with pytest.raises(ValueError, match="a.npy holds no documents"):
        TokenFile(tmp_path / "a")
