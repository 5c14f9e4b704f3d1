"""A directory of image files: its classes, what is listed, what is left out, and what is refused."""

import os
import pathlib
import re
import shutil

import numpy as np
import pytest

from simclr_jax.data import folder
from simclr_jax.data.spec import DataError
from support.splits import assert_contract, save_images


def test_folder_with_a_sub_folder_for_each_class(tmp_path):
    names = ['ant/1.bmp', 'ant/2.JPEG', 'cat/A.PNG', 'cat/b.jpg', 'dog/x/deep.webp']
    save_images(tmp_path / 'train', names)
    (tmp_path / 'train/cat/notes.txt').write_text('no image')
    examples = folder.load_folder(str(tmp_path), 'train')
    assert_contract(examples)
    assert examples.class_names == ('ant', 'cat', 'dog')
    assert examples.content.paths == [str(tmp_path / 'train' / name) for name in names]
    assert [examples.class_names[label] for label in examples.labels] == ['ant', 'ant', 'cat', 'cat', 'dog']
    assert examples.ids() == examples.content.paths


@pytest.mark.parametrize(
    'names',
    [['a.jpg', 'b.gif'], ['a.jpg', 'cat/b.jpg', 'dog/c.jpg'], ['images/a.jpg', 'images/deep/b.jpg']],
    ids=['flat', 'mixed', 'one sub-folder'],
)
def test_folder_without_classes_has_no_labels(tmp_path, names):
    save_images(tmp_path, names)
    examples = folder.load_folder(str(tmp_path), '')
    assert_contract(examples)
    assert examples.size == len(names)
    assert examples.num_classes == 0
    np.testing.assert_array_equal(examples.labels, -1)


def test_folder_that_is_not_there_names_the_cure(tmp_path):
    with pytest.raises(DataError, match=r'data.path=.*missing: there is no such directory'):
        folder.load_folder(str(tmp_path / 'missing'), 'train')
    save_images(tmp_path, ['train/cat/a.jpg', 'val/cat/a.jpg'])
    with pytest.raises(DataError, match=r"no sub-directory 'test' .* train, val\. .*data.eval_split=''"):
        folder.load_folder(str(tmp_path), 'test')
    (tmp_path / 'test').mkdir()
    (tmp_path / 'test/readme.txt').write_text('no image')
    with pytest.raises(DataError, match=r'test holds no image files \(\.jpg, .*at any depth'):
        folder.load_folder(str(tmp_path), 'test')


def test_folder_lists_each_directory_once(tmp_path):
    """Links to a directory above would list everything again, and two of them without end."""
    save_images(tmp_path / 'photos', ['cat/a.png', 'dog/b.png'])
    save_images(tmp_path / 'other', ['c.png'])
    for name, target in {
        'up': '.',
        'cat/up': '..',
        'dog/up': '..',
        'dog/root': '../..',
        'also_cat': 'cat',
        'emu': '../other',
    }.items():
        (tmp_path / 'photos' / name).symlink_to(tmp_path / 'photos' / pathlib.Path(name).parent / target)
    (tmp_path / 'photos/emu2').symlink_to(tmp_path / 'other')
    examples = folder.load_folder(str(tmp_path / 'photos'), '')
    assert examples.ids() == [str(tmp_path / 'photos' / name) for name in ('cat/a.png', 'dog/b.png', 'emu/c.png')]
    assert examples.class_names == ('cat', 'dog', 'emu')
    (note,) = examples.notes
    assert note.endswith('left out 6 links to directories that are listed already (also_cat, emu2, up, ...).')


def test_folder_leaves_out_what_is_no_image(tmp_path):
    root = tmp_path / 'photos'
    save_images(root, ['cat/1.png', 'dog/2.png', '[bold]/3.png'])
    save_images(root, ['.ipynb_checkpoints/1.png', '.thumbnails/1.png', '__MACOSX/1.png', 'cat/@eaDir/1.png'])
    save_images(root, ['cat/._1.png', 'cat/.hidden.jpg'])
    for name in ('list.txt', 'a.csv', 'b.csv', 'README'):
        (root / name).write_text('no image')
    (root / 'cat/gone.png').symlink_to(root / 'nowhere.png')
    (root / 'cat/loop.png').symlink_to(root / 'cat/loop.png')
    os.mkfifo(root / 'cat/pipe.png')
    shutil.copy(root / 'cat/1.png', os.fsencode(root / 'cat') + b'/caf\xe9\n.png')
    examples = folder.load_folder(str(root), '')
    assert [path[len(str(root)) + 1 :] for path in examples.ids()] == ['[bold]/3.png', 'cat/1.png', 'dog/2.png']
    assert examples.class_names == ('[bold]', 'cat', 'dog')
    (note,) = examples.notes
    assert note.startswith(f'{root}: left out ')
    for told in (
        '4 hidden directories (.ipynb_checkpoints, .thumbnails, __MACOSX, ...)',
        '2 hidden files (._1.png, .hidden.jpg)',
        '5 files that are no images (README, .csv, .txt, ...)',
        '2 broken links (gone.png, loop.png)',
        r'1 names that are not UTF-8 (caf\xe9\n.png)',
    ):
        assert told in note
    assert '\n' not in note


def test_folder_names_directories_that_cannot_be_opened(tmp_path, monkeypatch):
    def scandir(directory, *, real=os.scandir):
        if str(directory).endswith('secret'):
            raise PermissionError(13, 'Permission denied', directory)
        return real(directory)

    save_images(tmp_path, ['a.png', 'secret/b.png'])
    monkeypatch.setattr(os, 'scandir', scandir)
    assert '1 directories that cannot be opened (secret)' in folder.load_folder(str(tmp_path), '').notes[0]
    with pytest.raises(DataError, match='secret cannot be listed: Permission denied'):
        folder.load_folder(str(tmp_path), 'secret')


@pytest.mark.parametrize(
    'names, cure',
    [
        (['train/a.png', 'test/b.png'], 'set data.split=train data.eval_split=test '),
        (['Training/x/a.png', 'VAL/x/b.png'], 'set data.split=Training data.eval_split=VAL '),
        (
            ['all/train/x/a.png', 'all/valid/x/b.png'],
            'set data.path={root}/all data.split=train data.eval_split=valid ',
        ),
    ],
    ids=['below', 'other names', 'deeper'],
)
def test_folder_with_splits_is_not_trained_on_as_one(tmp_path, names, cure):
    save_images(tmp_path, names)
    with pytest.raises(DataError, match=re.escape(cure.format(root=tmp_path))):
        folder.load_folder(str(tmp_path), '')
    assert folder.load_folder(str(tmp_path), folder.ALL).size == len(names)


def test_folder_may_have_a_class_called_train(tmp_path):
    save_images(tmp_path, ['train/a.png', 'plane/b.png'])
    assert folder.load_folder(str(tmp_path), '').class_names == ('plane', 'train')


def test_folder_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    save_images(tmp_path / 'photos', ['a.png'])
    assert folder.load_folder('~/photos', '').ids() == [f'{tmp_path}/photos/a.png']
