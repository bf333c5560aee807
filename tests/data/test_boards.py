import numpy as np
import pytest
from sklearn.datasets import load_digits

from mm.data.boards import TINT, BoardConfig, board_sample, boards_batch, sample_board
from mm.data.split import Split
from mm.data.symbols import scan_ids, symbol_set
from mm.data.words import DIGITS, GLYPHS

NAMES = ("train", "validation", "test")


def test_scans_are_dealt_out_completely_and_once():
    dealt = np.concatenate([np.concatenate(scan_ids(name)) for name in NAMES])
    assert len(dealt) == len(set(dealt.tolist())) == 1797


def test_scans_are_dealt_out_class_by_class():
    target = load_digits().target
    for name, share in zip(NAMES, (0.7, 0.1, 0.2), strict=True):
        for digit, ids in enumerate(scan_ids(name)):
            assert set(target[ids]) == {digit}
            assert abs(len(ids) - share * (target == digit).sum()) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_boards_of_a_split_use_only_its_scans(name):
    allowed = set(np.concatenate(scan_ids(name)).tolist())
    seen = set()
    for index in range(120):
        seen |= set(sample_board(Split(name).seed(index)).scans.ravel().tolist())
    assert seen <= allowed
    assert len(seen) > 0.9 * len(allowed)


def test_cells_show_the_scan_that_the_label_names():
    digits = load_digits()
    board = sample_board(Split("test").seed(3))
    for row in range(8):
        for col in range(8):
            number = board.scans[row, col]
            assert digits.target[number] == board.labels[row, col]
            cell = board.image[8 * row : 8 * row + 8, 8 * col : 8 * col + 8, 0].astype(float)
            ground = TINT if (row + col) % 2 else 0
            expected = ground + digits.images[number] / 16 * (255 - ground)
            np.testing.assert_allclose(cell, expected, atol=1.01)


def test_all_64_questions_have_the_right_answer():
    board = sample_board(11)
    samples = board.samples()
    assert len(samples) == 64 and len({sample.question for sample in samples}) == 64
    assert board.question(2, 4) == ("row 3 col 5?", DIGITS[board.labels[2, 4]])
    assert [sample.answer for sample in samples] == [DIGITS[label] for label in board.labels.ravel()]


@pytest.mark.parametrize("row, col", [(8, 0), (0, -1)])
def test_a_cell_outside_the_board_is_refused(row, col):
    with pytest.raises(ValueError, match=r"must be in 0\.\.7"):
        sample_board(0).question(row, col)


def test_batch_equals_single_boards_of_mixed_splits():
    seeds = [Split("test").seed(5), 7, Split("validation").seed(5)]
    images, labels = boards_batch(seeds)
    assert images.shape == (3, 64, 64, 3) and images.dtype == np.uint8 and labels.shape == (3, 8, 8)
    for image, label, seed in zip(images, labels, seeds, strict=True):
        board = sample_board(seed)
        np.testing.assert_array_equal(image, board.image)
        np.testing.assert_array_equal(label, board.labels)


def test_labels_are_uniform():
    _, labels = boards_batch(range(200))
    shares = np.bincount(labels.ravel(), minlength=10) / labels.size
    np.testing.assert_allclose(shares, 0.1, atol=0.012)


@pytest.mark.parametrize("cells, pixels", [(1, 8), (4, 16), (8, 16)])
def test_sizes(cells, pixels):
    board = sample_board(2, BoardConfig(cells=cells, cell_pixels=pixels))
    assert board.image.shape == (cells * pixels, cells * pixels, 3)
    assert board.labels.shape == (cells, cells)


def test_glyphs_are_sixteen_different_pictures():
    symbols = symbol_set("glyphs", "train")
    assert symbols.words == GLYPHS
    assert len({picture.tobytes() for picture in symbols.pictures}) == len(symbols.pictures) == 16 * 9
    board = sample_board(4, BoardConfig(symbols="glyphs"))
    assert {answer for sample in board.samples() for answer in [sample.answer]} <= set(GLYPHS)


def test_board_sample_asks_about_every_cell():
    asked = {(sample.meta["row"], sample.meta["col"]) for sample in map(board_sample, range(800))}
    assert len(asked) == 64


@pytest.mark.parametrize("wrong", [{"cells": 0}, {"cells": 9}, {"cell_pixels": 3}, {"symbols": "letters"}])
def test_wrong_config_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("cells", "cells per side")):
        BoardConfig(**wrong)


def test_sparse_boards_ask_only_about_filled_cells():
    config = BoardConfig(filled=(3, 20), turns=5)
    counts = set()
    for seed in range(30):
        board = sample_board(seed, config)
        counts.add(int((board.labels != -1).sum()))
        blank = np.argwhere(board.labels == -1)[0]
        row, col = (int(i) for i in blank)
        assert board.image[8 * row : 8 * row + 8, 8 * col : 8 * col + 8].max() <= 40
        with pytest.raises(ValueError, match="blank"):
            board.question(row, col)
        sample = board_sample(seed, config)
        asked = [*sample.meta["history"], (sample.question, sample.answer)]
        assert len(asked) == 5 and all(pair in [board.question(*cell) for cell in filled(board)] for pair in asked)
    assert counts == {3, 20}


def filled(board) -> list[tuple[int, int]]:
    return [(int(row), int(col)) for row, col in np.argwhere(board.labels != -1)]
